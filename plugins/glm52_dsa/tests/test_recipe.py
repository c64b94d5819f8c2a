"""The recipe of 256 GPUs, as `rlcore plan` judges it."""

import json

import pytest

from rlcore.cli.main import main

TOKENS = "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK"
GROUPS = "rollout.sglang.config.sglang.0.server_groups"


@pytest.fixture
def plan(capsys):
    """Gives the record of the plan with some keys changed."""

    def run(**changes):
        settings = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
        main(["plan", "glm52_dsa/glm5.2-744b", "--json", *settings])
        return json.loads(capsys.readouterr().out)

    return run


def test_it_plans_with_one_server_that_reads_prompts_and_three_that_generate(plan):
    record = plan()
    assert record["problems"] == []
    served = "64 GPUs: tp 64 dp 64 ep 64, zai-org/GLM-5.2-FP8"
    assert record["servers"] == {
        "default prefill": f"1 × {served}",
        "default decode": f"3 × {served}",
        TOKENS: "64: decode servers send 12 sequences × 5 tokens = 60",
    }


def test_its_stages_start_where_a_layer_chooses_keys(plan):
    starts = [stage["chunks"][0][0] for stage in plan()["stages"]]
    assert starts == [0, 14, 22, 30, 38, 46, 54, 62]


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({f"cluster.env.{TOKENS}": "'32'"}, f"cluster.env.{TOKENS}", "12 sequences × 5 tokens = 60"),
        ({"rollout.sglang.args.speculative_num_draft_tokens": 6}, f"cluster.env.{TOKENS}", "× 6 tokens = 72"),
        ({"rollout.sglang.args.speculative_num_steps": 5}, "speculative_num_draft_tokens", "6 to verify"),
        ({f"{GROUPS}.1.overrides.max_running_requests": 1024}, f"cluster.env.{TOKENS}", "16 sequences"),
        ({f"{GROUPS}.1.num_gpus": 128}, "rollout.sglang.config", "192 GPUs, the rollout 256"),
        ({f"{GROUPS}.1.worker_type": "prefill"}, f"{GROUPS}.1", "no decode servers"),
        ({f"{GROUPS}.1.num_gpus_per_engine": 192}, "rollout.sglang.args.ep_size", "not over 64"),
        ({"rollout.sglang.args.ep_num_redundant_experts": 16}, "ep_num_redundant_experts", "over 64 ranks"),
    ],
)
def test_what_its_servers_cannot_be_is_refused(plan, changes, key, message):
    problems = plan(**changes)["problems"]
    assert any(key in problem["place"] and message in problem["message"] for problem in problems)


def test_one_server_of_all_gpus_is_too_large_for_deepep(plan):
    sizes = {f"rollout.sglang.args.{name}": 256 for name in ("dp_size", "ep_size")}
    (problem,) = plan(**sizes, **{"rollout.gpus_per_engine": 256, "rollout.sglang.config": "null"})["problems"]
    assert "rollout.gpus_per_engine" in problem["place"]
    assert "no settings for 256 ranks" in problem["message"]
