"""SGLang servers as a recipe describes them, what cannot be about them, and the environment that they need."""

import pytest

from rlcore.config.load import read_recipe
from rlcore.config.schema import Cluster, Data, Model, Recipe, Rollout
from rlcore.errors import RlcoreError
from rlcore.layout.server_environment import environment_facts, environment_problems, server_environment
from rlcore.layout.server_rules import check_servers, server_problems
from rlcore.layout.servers import server_facts, servers_of
from rlcore.models.spec import ModelSpec

TOKENS, DEPTH = "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK", "NVSHMEM_QP_DEPTH"
DEEPEP = {"moe_a2a_backend": "deepep", "enable_dp_attention": True}
PREFILL = {"worker_type": "prefill", "num_gpus": 64}
DECODE = {"worker_type": "decode", "num_gpus": 192}
DRAFTS = {"speculative_num_draft_tokens": 5}


def recipe(groups=None, *, args=(), gpus=256, each=64, env=(), **sglang):
    config = {"sglang": [{"server_groups": groups}]} if groups else None
    servers = {"args": dict(args), "config": config, **sglang}
    return Recipe(
        model=Model(checkpoint="some/model"),
        data=Data(path="train.jsonl"),
        rollout=Rollout(engine="sglang", num_gpus=gpus, gpus_per_engine=each, sglang=servers),
        cluster=Cluster(env=dict(env)),
    )


def problems(groups=None, experts=None, **keywords):
    return [(one.place, one.message, one.remedy) for one in _found(groups, experts, **keywords)]


def _found(groups, experts, **keywords):
    return server_problems(servers_of(recipe(groups, **keywords)), experts)


def test_without_groups_all_servers_are_alike():
    (servers,) = servers_of(recipe(gpus=32, each=8, args={"dp_size": 4, "pp_size": 2, "ep_size": 2}))
    assert (servers.role, servers.count, servers.checkpoint) == ("regular", 4, "some/model")
    assert (servers.pp, servers.tp, servers.dp, servers.ep) == (2, 4, 4, 2)


def test_a_group_has_the_arguments_of_all_and_its_own():
    own = {"overrides": {"dp_size": 32, "cuda_graph_max_bs": 12}, "num_gpus_per_engine": 32}
    prefill, decode = servers_of(recipe([PREFILL, {**DECODE, **own}], args={"dp_size": 64, "page_size": 64}))
    assert (prefill.count, prefill.gpus_per_server, prefill.dp) == (1, 64, 64)
    assert (decode.count, decode.gpus_per_server, decode.dp) == (6, 32, 32)
    assert decode.args == {"dp_size": 32, "page_size": 64, "cuda_graph_max_bs": 12}


def test_servers_of_the_policys_checkpoint_follow_the_policy_unless_told_otherwise():
    group = [{"num_gpus": 8}]
    models = [{"server_groups": group}, {"name": "judge", "model_path": "other", "server_groups": group}]
    kept = {"name": "old", "update_weights": False, "server_groups": group}
    found = servers_of(recipe(gpus=24, each=8, config={"sglang": [*models, kept]}))
    assert [(one.model, one.checkpoint, one.follow_policy) for one in found] == [
        ("default", "some/model", True),
        ("judge", "other", False),
        ("old", "some/model", False),
    ]
    assert [fact.endswith(", as it is") for _, fact in server_facts(found, on_gpus=True)] == [False, True, True]


def test_on_a_cpu_one_server_starts_where_no_number_is_given():
    groups = servers_of(recipe(gpus=0))
    assert server_facts(groups, on_gpus=False) == [("default regular", "1 on CPUs, some/model")]


def test_where_another_engine_generates_or_servers_run_already_there_are_none_to_start():
    assert servers_of(recipe(urls=["http://there:30000"])) == []
    assert servers_of(Recipe(model=Model(checkpoint="some/model"))) == []


def test_tokens_that_travel_to_experts_make_every_rank_hold_some():
    (still,) = servers_of(recipe(args={"ep_size": 8}))
    (travelling,) = servers_of(recipe(args=DEEPEP))
    assert (still.ep, travelling.ep) == (8, 64)


@pytest.mark.parametrize(
    ("groups", "message", "remedy"),
    [
        ([PREFILL], "has prefill servers, but no decode servers", "worker_type: decode"),
        ([DECODE], "has decode servers, but no prefill servers", "worker_type: prefill"),
        ([PREFILL, DECODE, {"num_gpus": 64}], "regular servers beside decode and prefill", "prefill or decode"),
    ],
)
def test_prefill_and_decode_servers_need_each_other_and_nothing_else(groups, message, remedy):
    ((_, said, tried),) = problems(groups)
    assert message in said
    assert remedy in tried


@pytest.mark.parametrize(
    ("args", "key", "message", "remedy"),
    [
        ({"pp_size": 3}, "pp_size", "3 stages do not divide the 64 GPUs", "2 or 4"),
        ({"dp_size": 48}, "dp_size", "48 does not divide the 64 ranks", "32 or 64"),
        ({"ep_size": 3}, "ep_size", "3 does not divide the 64 ranks", "2 or 4"),
        ({**DEEPEP, "ep_size": 32}, "ep_size", "deepep spreads experts over all 64 ranks", "ep_size: 64"),
    ],
)
def test_ranks_of_a_server_share_attention_and_experts_evenly(args, key, message, remedy):
    ((place, said, tried),) = problems(args=args)
    assert place == f"rollout.sglang.args.{key}"
    assert message in said
    assert remedy in tried


@pytest.mark.parametrize(("mode", "allowed"), [("auto", False), ("normal", False), ("low_latency", True)])
def test_deepeps_normal_kernels_know_some_numbers_of_ranks_up_to_160(mode, allowed):
    found = problems(each=256, args={**DEEPEP, "deepep_mode": mode})
    assert bool(found) != allowed
    assert allowed or found[0][::2] == ("rollout.gpus_per_engine", "servers of 160 GPUs")
    assert problems(each=64, args={**DEEPEP, "deepep_mode": mode}) == []


@pytest.mark.parametrize(("copies", "fits"), [(None, False), (16, False), (32, True), (96, True)])
def test_experts_and_copies_of_busy_ones_spread_evenly(copies, fits):
    args = {**DEEPEP, **({"ep_num_redundant_experts": copies} if copies else {})}
    found = problems(experts=160, args=args)
    assert bool(found) != fits
    assert fits or found[0][2] == "ep_num_redundant_experts: 32"


def test_experts_are_those_of_the_policy_only():
    judge = {"name": "judge", "model_path": "other", "server_groups": [{"num_gpus": 64}]}
    assert problems(experts=3, gpus=64, args=DEEPEP, config={"sglang": [judge]}) == []


def test_a_problem_of_a_group_stands_where_the_group_says_it():
    ((place, *_),) = problems([PREFILL, {**DECODE, "overrides": {"dp_size": 48}}])
    assert place == "rollout.sglang.config.sglang.0.server_groups.1.overrides.dp_size"


def decoding(env=(), **overrides):
    """Prefill servers and decode servers that send tokens by DeepEP, five drafted at a time."""
    groups = [{**PREFILL, "overrides": {"max_running_requests": 9999}}, {**DECODE, "overrides": overrides}]
    made = recipe(groups, args={**DEEPEP, **DRAFTS, "dp_size": 64}, env=env)
    return made, servers_of(made)


@pytest.mark.parametrize(
    ("overrides", "tokens"),
    [
        ({"cuda_graph_max_bs": 12}, "64"),
        ({"cuda_graph_bs": [1, 8, 16]}, "128"),
        ({"cuda_graph_max_bs": 12, "max_running_requests": 768}, "64"),
        ({"cuda_graph_max_bs": 12, "max_running_requests": 1664}, "256"),
    ],
)
def test_buffers_have_room_for_the_drafts_of_the_largest_decode_batch(overrides, tokens):
    assert server_environment(*decoding(**overrides))[TOKENS] == tokens


def test_what_needs_no_buffer_gets_none():
    made, groups = decoding(cuda_graph_max_bs=12, deepep_mode="normal")
    assert server_environment(made, groups) == {}
    made, groups = decoding(cuda_graph_max_bs=12, moe_a2a_backend="none")
    assert server_environment(made, groups) == {}
    assert environment_facts(made, groups) == []


def test_large_buffers_bring_longer_queues_along():
    assert DEPTH not in server_environment(*decoding(cuda_graph_max_bs=51))
    environment = server_environment(*decoding(cuda_graph_max_bs=100))
    assert (environment[TOKENS], environment[DEPTH]) == ("512", "2048")


def test_the_recipes_own_values_stand_and_are_checked():
    made, groups = decoding({TOKENS: "60", "OTHER": "x"}, cuda_graph_max_bs=12)
    environment = {"OTHER": "x", TOKENS: "60", "NVSHMEM_DISABLE_NCCL": "1"}
    assert server_environment(made, groups) == environment
    assert list(environment_problems(made, groups)) == []


@pytest.mark.parametrize("value", ["59", "2048", "many", ""])
def test_a_buffer_that_the_recipe_makes_too_small_or_too_large_is_refused_with_the_arithmetic(value):
    (problem,) = environment_problems(*decoding({TOKENS: value}, cuda_graph_max_bs=12))
    assert problem.place == f"cluster.env.{TOKENS}"
    assert "decode servers send 12 sequences × 5 tokens = 60" in problem.message
    assert problem.remedy == '"64", or leave it out'


def test_more_tokens_than_deepep_takes_are_refused():
    (problem,) = environment_problems(*decoding(max_running_requests=64 * 205))
    assert problem.place == "rollout.sglang.config.sglang.0.server_groups.1.overrides.max_running_requests"
    assert "205 sequences × 5 tokens = 1025 in a step, DeepEP takes 1024 at most" in problem.message


def test_later_names_of_arguments_count_as_the_earlier_ones_do():
    environments = [
        server_environment(*decoding(**{name: 12}))
        for name in ("cuda_graph_max_bs", "cuda_graph_max_bs_decode")
    ]
    assert environments[0] == environments[1] != {}


def test_drafts_of_one_token_a_step_are_one_more_than_the_steps():
    drafts = {"speculative_num_steps": 4, "speculative_eagle_topk": 1}
    assert problems(args={**drafts, "speculative_num_draft_tokens": 5}) == []
    ((place, *_, remedy),) = problems(args={**drafts, "speculative_num_draft_tokens": 6})
    assert place == "rollout.sglang.args.speculative_num_draft_tokens"
    assert remedy == "speculative_num_draft_tokens: 5"


def test_queues_that_the_recipe_makes_too_short_are_refused():
    (problem,) = environment_problems(*decoding({DEPTH: "512"}, cuda_graph_max_bs=100))
    assert problem.place == f"cluster.env.{DEPTH}"
    assert problem.remedy == '"2048", or leave it out'


def test_each_group_and_what_follows_from_it_is_said_in_a_line():
    made, groups = decoding(cuda_graph_max_bs=12)
    assert server_facts(groups, on_gpus=True) == [
        ("default prefill", "1 × 64 GPUs: tp 64 dp 64 ep 64, some/model"),
        ("default decode", "3 × 64 GPUs: tp 64 dp 64 ep 64, some/model"),
    ]
    assert environment_facts(made, groups) == [
        (TOKENS, "64: decode servers send 12 sequences × 5 tokens = 60"),
        ("NVSHMEM_DISABLE_NCCL", "1"),
    ]


RECIPE = """
model: {checkpoint: some/model}
rollout:
  engine: sglang
  num_gpus: 64
  gpus_per_engine: 64
  sglang: {args: {ep_size: 3, ep_num_redundant_experts: 1}}
"""


def write(folder, text):
    (folder / "recipe.yaml").write_text(text)
    return read_recipe(str(folder / "recipe.yaml"))


def test_problems_come_with_file_and_line(tmp_path):
    spec = ModelSpec(
        model_type="toy",
        hf_config={},
        hidden_size=8,
        vocab_size=10,
        layers=(),
        transformer_config={"num_moe_experts": 4},
        model_args={},
        layer_specs=lambda config, stage: None,
    )
    places = [problem.place for problem in check_servers(write(tmp_path, RECIPE), spec)]
    keys = ("rollout.sglang.args.ep_size", "rollout.sglang.args.ep_num_redundant_experts")
    assert places == [f"{tmp_path}/recipe.yaml:7 ({key})" for key in keys]


def test_nothing_is_said_of_servers_that_were_refused_already(tmp_path):
    assert check_servers(write(tmp_path, RECIPE + "  top_p: 7\n"), None) == []


def test_groups_in_a_file_are_read_from_there(tmp_path):
    (tmp_path / "servers.yaml").write_text("sglang:\n- server_groups: [{num_gpus: 64}]\n")
    (servers,) = servers_of(recipe(gpus=64, config=tmp_path / "servers.yaml"))
    assert (servers.count, servers.role) == (1, "regular")
    (tmp_path / "servers.yaml").write_text("sglang:\n- server_groups: [{num_gpus: many}]\n")
    with pytest.raises(RlcoreError):
        servers_of(recipe(gpus=64, config=tmp_path / "servers.yaml"))
