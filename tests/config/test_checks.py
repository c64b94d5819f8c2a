"""What a recipe names is held against what is installed and what lies on this machine."""

import json

import pytest

from rlcore.config.checks import check
from rlcore.config.load import read_recipe
from rlcore.config.support import unbuilt
from rlcore.registry import Catalog

RUNNABLE = """
model: {checkpoint: model}
data: {path: train.jsonl}
rewards: [exact]
train: {steps: 10}
"""


@pytest.fixture
def problems(write, tmp_path):
    """Check a sound recipe with `text` laid over it, in a folder that has all it names."""
    (tmp_path / "model").mkdir()
    config = {"model_type": Catalog.installed().names("model_spec")[0]}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "train.jsonl").write_text('{"prompt": "1+1", "label": "2"}\n')
    write(RUNNABLE, "sound.yaml")

    def found(text="", overrides=()):
        loaded = read_recipe(write("base: sound.yaml\n" + text), overrides)
        rules = loaded.recipe.plugins
        return check(loaded, Catalog.installed(rules.deny, rules.require))

    return found


def test_a_recipe_that_has_all_it_names_has_no_problem(problems):
    assert problems() == []


@pytest.mark.parametrize(
    ("text", "place", "message", "remedy"),
    [
        ("rewards: [exakt]", "recipe.yaml:2 (rewards.0)", "no reward 'exakt' is installed", "exact"),
        ("filters: [nonzero_sd]", "recipe.yaml:2 (filters.0)", "no sampling_filter", "nonzero_std"),
        ("advantage: grpoo", "recipe.yaml:2 (advantage)", "no advantage_estimator", "grpo"),
        ("loss: {use: clip, options: {eps: 1}}", "recipe.yaml:2 (loss.options.eps)", "no such option", ""),
        (
            "loss: {use: clip, options: {eps_clip: -1}}",
            "recipe.yaml:2 (loss.options.eps_clip)",
            "greater than",
            "",
        ),
        ("eval: {rewards: [nope]}", "recipe.yaml:2 (eval.rewards.0)", "no reward", ""),
        ("rewards: {allowed: {nope: {}}}", "recipe.yaml:2 (rewards.allowed.nope)", "no reward", ""),
        ("layout_validators: [nope]", "recipe.yaml:2 (layout_validators.0)", "no layout_validator", ""),
        ("plugins: {require: [nope]}", "recipe.yaml:2 (plugins.require)", "'nope' is not installed", ""),
        ("plugins: {deny: [exact]}", "sound.yaml:4 (rewards.0)", "is disabled", "deny list"),
        ("model: {plugin: nope}", "recipe.yaml:2 (model.plugin)", "no model_spec 'nope'", ""),
        ("model: {checkpoint: modle}", "recipe.yaml:2 (model.checkpoint)", "no folder 'modle'", "hub id"),
        ("model: {checkpoint: any/thing}", "recipe.yaml:2 (model.checkpoint)", "ships its conf", "hf download"),
        ("model: {overrides: {model_type: x}}", "sound.yaml:2 (model.checkpoint)", "no model_spec 'x'", ""),
        ("data: {path: trian.jsonl}", "recipe.yaml:2 (data.path)", "no file 'trian.jsonl'", "'train.jsonl'"),
        (
            "data: {path: 'far/gone.jsonl@[0:5]'}",
            "recipe.yaml:2 (data.path)",
            "no file 'far/gone.jsonl'",
            "relative to",
        ),
        ("sft: {data: {path: x.jsonl}}", "recipe.yaml:2 (sft.data.path)", "no file", ""),
        ("cluster: {hostfile: hosts}", "recipe.yaml:2 (cluster.hostfile)", "no file 'hosts'", ""),
        ("megatron: {layrs: 1}", "recipe.yaml:2 (megatron.layrs)", "no field 'layrs'", ""),
    ],
)
def test_what_is_not_there_is_named_with_its_line(problems, text, place, message, remedy):
    [problem] = problems(text)
    assert problem.place == place
    assert message in problem.message
    assert remedy in problem.remedy


def test_a_slice_of_a_file_that_is_there_is_fine(problems):
    assert problems("data: {path: 'train.jsonl@[-1:]'}") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("{", "is not JSON"),
        ("{}", "names no model_type"),
        ("[]", "names no model_type"),
    ],
)
def test_a_checkpoint_whose_config_says_nothing_is_refused(problems, tmp_path, content, message):
    config = tmp_path / "model" / "config.json"
    config.unlink() if content is None else config.write_text(content)
    [problem] = problems()
    assert problem.place == "sound.yaml:2 (model.checkpoint)"
    assert message in problem.message


def test_an_empty_dataset_is_refused(problems, tmp_path):
    (tmp_path / "train.jsonl").write_text("")
    [problem] = problems()
    assert "'train.jsonl' is empty" in problem.message


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("model: {load: gone}", "there is no folder 'gone'", "a path relative to"),
        ("model: {load: model}", "'model' is not a torch_dist checkpoint", "a folder with metadata.json"),
        ("model: {load: run}", "'run' is not a torch_dist checkpoint", "run/trainer"),
        ("algorithm: {kl: {reference: gone}}", "there is no folder 'gone'", "a path relative to"),
        ("algorithm: {kl: {reference: run}}", "'run' is not a checkpoint", "run/trainer"),
    ],
)
def test_weights_beside_the_models_own_are_looked_for(problems, tmp_path, text, message, remedy):
    (tmp_path / "run" / "trainer").mkdir(parents=True)
    (tmp_path / "run" / "trainer" / "metadata.json").write_text("{}")
    [problem] = problems(text)
    assert message in problem.message
    assert remedy in problem.remedy


def test_the_checkpoint_that_servers_start_from_has_to_be_here(problems, tmp_path):
    [problem] = problems("rollout: {engine: sglang, checkpoint: model-fp8}")
    assert "no folder 'model-fp8'" in problem.message
    (tmp_path / "model-fp8").mkdir()
    assert problems("rollout: {engine: sglang, checkpoint: model-fp8}") == []


def test_the_reference_may_be_in_either_format(problems, tmp_path):
    (tmp_path / "model" / "model.safetensors").touch()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "metadata.json").write_text("{}")
    assert problems("algorithm: {kl: {reference: model}}") == []
    assert problems("algorithm: {kl: {reference: state}}\nmodel: {load: state}") == []


def test_server_groups_may_lie_in_a_file_and_are_checked_there(problems, write):
    write("sglang:\n- server_groups: [{worker_type: prefill, num_gpus: 0}]", "servers.yaml")
    [problem] = problems("rollout: {sglang: {config: servers.yaml}}")
    assert problem.place.startswith("servers.yaml:2")


POLICY = "{name: policy, server_groups: [{num_gpus: 4}]}"
JUDGE = "name: judge, server_groups: [{num_gpus: 4}]"


@pytest.mark.parametrize(
    ("models", "key", "message", "remedy"),
    [
        (
            f"{{{JUDGE}}}, {POLICY}",
            "1.update_weights",
            "both 'judge' and 'policy' would get the policy's weights, and only one makes its samples",
            "update_weights: false",
        ),
        (
            f"{{{JUDGE}, update_weights: false}}, {{{JUDGE}, model_path: model-fp8}}",
            "0.update_weights",
            "no model gets the policy's weights",
            "update_weights: true",
        ),
        (
            f"{{{JUDGE}, update_weights: true, model_path: model-fp8}}",
            "0.model_path",
            "servers of the policy start from model, not from model-fp8",
            "rollout: {checkpoint: model-fp8}",
        ),
        (
            f"{POLICY}, {{name: policy, model_path: other, server_groups: [{{num_gpus: 4}}]}}",
            "1.name",
            "two models are called 'policy'",
            "own",
        ),
    ],
)
def test_of_several_served_models_one_is_the_policy(problems, models, key, message, remedy):
    sglang = f"rollout: {{engine: sglang, num_gpus: 8, sglang: {{config: {{sglang: [{models}]}}}}}}"
    found = [one for one in problems(sglang) if f"rollout.sglang.config.sglang.{key}" in one.place]
    assert [(message in one.message, remedy in one.remedy) for one in found] == [(True, True)]


def test_servers_that_run_already_are_not_described(problems):
    sglang = f"{{urls: ['http://there:1'], config: {{sglang: [{POLICY}]}}}}"
    (problem,) = problems(f"rollout: {{engine: sglang, num_gpus: 4, sglang: {sglang}}}")
    assert "(rollout.sglang.config): servers at urls run already" in str(problem)


def test_other_models_keep_their_weights_wherever_they_stand(problems):
    models = f"{{{JUDGE}, update_weights: false}}, {POLICY}, {{name: reward, model_path: other, {JUDGE[13:]}}}"
    assert (
        problems(f"rollout: {{engine: sglang, num_gpus: 12, sglang: {{config: {{sglang: [{models}]}}}}}}") == []
    )


def test_server_groups_of_a_file_use_the_gpus_that_generate(problems, write):
    write("sglang:\n- server_groups: [{num_gpus: 8}]", "servers.yaml")
    [problem] = problems("rollout: {num_gpus: 4, sglang: {config: servers.yaml}}")
    assert "its groups have 8 GPUs, the rollout 4" in problem.message


def test_problems_of_schema_plugins_files_and_native_settings_come_together(problems):
    found = problems(
        "seed: x\nrewards: [nope]\ndata: {path: gone.jsonl}\nmegatron: {lr: 1}\nmtp: {train: true}"
    )
    assert [problem.place.split(" ")[1] for problem in found] == [
        "(seed)",
        "(rewards.0)",
        "(data.path)",
        "(megatron.lr)",
        "(mtp.train)",
    ]


def test_features_that_do_not_run_yet_are_named_with_their_line(write):
    loaded = read_recipe(write(RUNNABLE + "cluster: {nodes: 2, gpus_per_node: 1}\nrollout: {num_gpus: 1}\n"))
    found = [(problem.place, problem.message) for problem in unbuilt(loaded)]
    assert found == [
        ("recipe.yaml:6 (cluster.nodes)", "training on several nodes needs a Ray cluster to join"),
        ("recipe.yaml:7 (rollout.num_gpus)", "the local engine generates where the trainer is"),
    ]


def test_a_plain_recipe_uses_nothing_unbuilt(write):
    assert unbuilt(read_recipe(write(RUNNABLE))) == []
