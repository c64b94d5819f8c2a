"""Malformed recipes: each gives a message with its place, the value, and what would work."""

# ruff: noqa: E501 — a table of cases reads best with one on each line

import pytest

from rlcore.config.load import read_recipe
from rlcore.errors import RlcoreError

HEAD = "model: {checkpoint: some/model}\nrewards: [exact]\n"

# (what is wrong, text from line 3 on, line, key, part of the message, part of the remedy)
CASES = [
    ("misspelt section", "optimiser: {lr: 1}", 3, "optimiser", "unknown key 'optimiser'", "'optimizer'"),
    ("misspelt key", "rollout:\n  temprature: 1", 4, "rollout.temprature", "'temprature'", "'temperature'"),
    ("key of another section", "train: {temperature: 1}", 3, "train.temperature", "unknown", "rollout.temperature"),
    ("key nobody knows", "sync: {zzz: 1}", 3, "sync.zzz", "unknown key 'zzz'", "verify, bucket_mib, transport"),
    ("key in a list item", "filters: [{use: x, optons: {}}]", 3, "filters.0.optons", "'optons'", "'options'"),
    ("number in quotes", 'optimizer: {lr: "1e-6"}', 3, "optimizer.lr", '"1e-6" is not a number', "without quotes"),
    ("text for a whole number", "seed: many", 3, "seed", '"many" is not a whole number', "digits"),
    ("fraction for a whole number", "train: {steps: 1.5}", 3, "train.steps", "1.5 is not a whole", "digits"),
    ("truth for a number", "seed: true", 3, "seed", "true is not a whole number", "digits"),
    ("on for true", "rollout: {partial: on}", 3, "rollout.partial", '"on" is not a truth value', "true or false"),
    ("number for a text", "name: 7", 3, "name", "7 is not a text", "quotes"),
    ("unknown choice", "rollout: {engine: sglan}", 3, "rollout.engine", "local, sglang", "'sglang'"),
    ("choice in capitals", "sync: {verify: NEVER}", 3, "sync.verify", "always, first, never", "one of"),
    ("zero where more is needed", "rollout: {samples_per_prompt: 0}", 3, "rollout.samples_per_prompt", "0 is", "than 0"),
    ("top_p above 1", "rollout: {top_p: 1.5}", 3, "rollout.top_p", "1.5 is out of range", "less than or equal to 1"),
    ("negative rate", "optimizer: {lr: -1e-6}", 3, "optimizer.lr", "-1e-06 is out of range", "greater than 0"),
    ("infinite rate", "optimizer: {lr: .inf}", 3, "optimizer.lr", "is not a finite number", "0.5"),
    ("NaN", "optimizer: {weight_decay: .nan}", 3, "optimizer.weight_decay", "is not a finite number", "0.5"),
    ("section as a text", "optimizer: adam", 3, "optimizer", "expected a mapping of keys", "lr, min_lr"),
    ("section left empty", "rollout:", 3, "rollout", "expected a mapping of keys, not null", "engine"),
    ("one value for a list", "plugins: {deny: x}", 3, "plugins.deny", "expected a list", "[…]"),
    ("plugin without a name", "loss: {options: {a: 1}}", 3, "loss.use", "'use' is missing", "use: …"),
    ("plugin as a number", "advantage: 3", 3, "advantage", "expected a mapping", "use, options"),
    ("data without a path", "data: {shuffle: true}", 3, "data.path", "'path' is missing", "path: …"),
    ("set without a name", "eval: {datasets: [{path: x}]}", 3, "eval.datasets.0.name", "'name' is missing", "name: …"),
    ("no length", "data: {path: x}", 1, "train.steps", "how long to train", "steps: 100"),
    ("two lengths", "data: {path: x}\ntrain: {steps: 1, epochs: 1}", 4, "train.epochs", "both given", "keep one"),
    ("batch that does not divide", "train: {global_batch_size: 100}", 3, "train.global_batch_size", "32 × 8 = 256", "64 or 128"),
    ("batch that cuts groups", "train: {global_batch_size: 4}", 3, "train.global_batch_size", "groups of 8", "8"),
    ("updates that do not divide", "train: {updates_per_rollout: 3}", 3, "train.updates_per_rollout", "3 updates", "2 or 4"),
    ("batch said twice", "train: {global_batch_size: 256, updates_per_rollout: 1}", 3, "train.updates_per_rollout", "already says", "keep one"),
    ("too little over-sampling", "rollout: {over_sampling_prompts: 8}", 3, "rollout.over_sampling_prompts", "fewer than the 32", "at least 32"),
    ("greedy training", "data: {path: x}\ntrain: {steps: 1}\nrollout: {temperature: 0}", 5, "rollout.temperature", "nothing to learn", "1.0"),
    ("no room for a prompt", "rollout: {max_context_tokens: 64}", 3, "rollout.max_context_tokens", "no prompt fits", "more than 1024"),
    ("cut short without end", "rollout: {mode: async, partial: true}", 3, "rollout.partial", "no response is cut short", "max_staleness"),
    ("mask without partial", "rollout: {mask_offpolicy: true}", 3, "rollout.mask_offpolicy", "older weights", "partial: true"),
    ("bounds in the wrong order", "algorithm: {importance_sampling: {low: 3}}", 3, "algorithm.importance_sampling.low", "above high", "at most 2"),
    ("floor above the peak", "optimizer: {min_lr: 1}", 3, "optimizer.min_lr", "above lr", "at most 1e-06"),
    ("overlap of nothing", "optimizer: {overlap_offload: true}", 3, "optimizer.overlap_offload", "nothing is offloaded", "cpu_offload: true"),
    ("modules without selective", "recompute: {modules: [mlp]}", 3, "recompute.modules", "granularity is none", "selective"),
    ("training no MTP layer", "mtp: {train: true}", 3, "mtp.train", "no layer", "num_layers: 1"),
    ("evaluation of nothing", "eval: {every: 5}", 3, "eval.datasets", "no set to evaluate", "datasets:"),
    ("ended before warned", "telemetry: {end_stalled_after: 60}", 3, "telemetry.end_stalled_after", "warning, at 300 s", "600"),
    ("kept but never written", "checkpoints: {every: 10, keep_every: 15}", 3, "checkpoints.keep_every", "every 10 steps", "multiple of 10"),
    ("memory that both use", "cluster: {colocate: true, offload_train: true}\nrollout: {mode: async}", 3, "cluster.offload_train", "both need their memory", "offload_train: false"),
    ("engines that do not fit", "rollout: {engine: sglang, num_gpus: 6, gpus_per_engine: 4}", 3, "rollout.gpus_per_engine", "engines of 4", "3 or 6"),
    ("groups of too many GPUs", "rollout: {num_gpus: 4, sglang: {config: {sglang: [{server_groups: [{num_gpus: 8}]}]}}}", 3, "rollout.sglang.config", "8 GPUs, the rollout 4", "add up to 4"),
    ("group without GPUs", "rollout: {sglang: {config: {sglang: [{server_groups: [{worker_type: decode}]}]}}}", 3, "rollout.sglang.config.sglang.0.server_groups.0.num_gpus", "missing", "num_gpus: …"),
    ("unknown kind of server", "rollout: {sglang: {config: {sglang: [{server_groups: [{worker_type: fill, num_gpus: 8}]}]}}}", 3, "rollout.sglang.config.sglang.0.server_groups.0.worker_type", "prefill", "'prefill'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line", "key", "message", "remedy"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_a_malformed_recipe_gives_place_value_and_remedy(write, text, line, key, message, remedy):
    [problem] = read_recipe(write(HEAD + text)).problems
    assert problem.place == f"recipe.yaml:{line} ({key})"
    assert message in problem.message
    assert remedy in problem.remedy


UNREADABLE = [
    ("tab", "model:\n\tcheckpoint: x", "recipe.yaml:2", "not valid YAML"),
    ("unclosed bracket", "rewards: [a", "recipe.yaml:1", "not valid YAML"),
    ("unclosed quote", "name: 'x", "recipe.yaml:1", "not valid YAML"),
    ("wrong indentation", "model:\n  checkpoint: x\n dtype: float32", "recipe.yaml:3", "not valid YAML"),
    ("two documents", "name: x\n---\nname: y", "recipe.yaml:2", "not valid YAML"),
    ("key twice", "name: x\nname: y", "recipe.yaml:2", "already written at recipe.yaml:1"),
    ("empty file", "", "recipe.yaml:1", "a recipe is a mapping"),
    ("list", "- name: x", "recipe.yaml:1", "a recipe is a mapping"),
    ("no model", "name: x", "recipe.yaml:1 (model)", "'model' is missing"),
    ("base as a number", "base: 3\nname: x", "recipe.yaml:1 (base)", "a base is"),
    (
        "base that is not there",
        "base: [nothing.yaml]\nname: x",
        "recipe.yaml:1 (base)",
        "no file 'nothing.yaml'",
    ),
    ("own base", "base: recipe.yaml\nname: x", "recipe.yaml", "their own base"),
]


@pytest.mark.parametrize(
    ("text", "place", "message"), [c[1:] for c in UNREADABLE], ids=[c[0] for c in UNREADABLE]
)
def test_an_unreadable_recipe_is_refused_with_file_and_line(write, text, place, message):
    recipe = write(text)
    with pytest.raises(RlcoreError) as caught:
        read_recipe(recipe)
    [problem] = caught.value.problems
    assert problem.place == place
    assert message in problem.message


def test_a_file_that_is_no_text_is_refused(write, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RlcoreError, match="UTF-8"):
        read_recipe("recipe.yaml")


def test_all_problems_come_at_once_in_the_order_of_lines(write):
    recipe = write(HEAD + "seed: x\nrollout: {top_p: 2, over_sampling_prompts: 1}\nzzz: 1\nmtp: {train: true}")
    places = [problem.place for problem in read_recipe(recipe).problems]
    keys = ["seed", "rollout.top_p", "rollout.over_sampling_prompts", "zzz", "mtp.train"]
    lines = [3, 4, 4, 5, 6]
    assert places == [f"recipe.yaml:{line} ({key})" for line, key in zip(lines, keys, strict=True)]


def test_states_in_host_memory_need_weights_in_bf16(write):
    recipe = write(
        HEAD + "optimizer: {cpu_offload: true}\nsft: {data: {path: x}, optimizer: {cpu_offload: true}}"
    )
    assert not read_recipe(recipe).problems
    problems = read_recipe(recipe, ["model.dtype=float32"]).problems
    assert [problem.place for problem in problems] == [
        "recipe.yaml:3 (optimizer.cpu_offload)",
        "recipe.yaml:4 (sft.optimizer.cpu_offload)",
    ]


def test_a_rule_is_silent_where_the_schema_refused_what_it_reads(write):
    recipe = write(HEAD + "rollout: {prompts_per_step: lots, over_sampling_prompts: 1}")
    assert [problem.message for problem in read_recipe(recipe).problems] == ['"lots" is not a whole number']


def test_no_secret_is_accepted_or_printed(write):
    recipe = write(HEAD + "cluster: {env: {SERVICE_TOKEN: hunter2, B_KEY: 5}}")
    loaded = read_recipe(recipe, ["cluster.env.C_PASSWORD=hunter2"])
    assert len(loaded.problems) == 3
    assert "hunter2" not in loaded.dump() + "".join(map(str, loaded.problems))
