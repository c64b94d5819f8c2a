"""What is wrong with files is said in one message, before anything is written: place, value, remedy."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlcore.cli.main import main


@pytest.fixture
def checkpoint(world, materials):
    """A copy of the model, to be damaged."""
    return shutil.copytree(materials / "model", world.folder / "model")


@pytest.fixture
def refused(world, capsys):
    """Train, and expect to be refused with a message that holds these words."""

    def check(*words, overrides=(), command="train"):
        capsys.readouterr()
        assert world.rlcore(command, "run", *overrides) == 1
        message = capsys.readouterr().err
        assert [word for word in words if word not in message] == []
        assert "Traceback" not in message
        assert "unexpected" not in message
        assert not (world.folder / "run").exists()

    return check


BAD_ROWS = {
    "not JSON": ('{"prompt": "1+1="', ":2"),
    "no prompt": ('{"promt": "1+1="}', "prompt"),
    "a number for a prompt": ('{"prompt": 3}', "prompt"),
    "an empty chat": ('{"prompt": []}', "prompt"),
    "a message without a role": ('{"prompt": [{"content": "1+1="}]}', "role"),
    "metadata that is no mapping": ('{"prompt": "1+1=", "metadata": 3}', "metadata"),
    "a list": ("[1, 2]", ":2"),
    "tools that are no list": ('{"prompt": "1+1=", "tools": 3}', "tools"),
}


@pytest.mark.parametrize("line", BAD_ROWS, ids=str)
def test_a_bad_row_is_named_with_its_line(world, refused, line):
    text, word = BAD_ROWS[line]
    data = world.folder / "data.jsonl"
    data.write_text(f'{{"prompt": "1+1=", "label": "2"}}\n{text}\n')
    refused(f"{data}:2", word, overrides=[f"data.path={data}"])


def test_an_empty_dataset_is_refused(world, refused):
    data = world.folder / "data.jsonl"
    data.touch()
    refused(str(data), overrides=[f"data.path={data}"])


def test_a_dataset_that_is_not_utf_8_is_refused(world, refused):
    data = world.folder / "data.jsonl"
    data.write_bytes(b'{"prompt": "\xff\xfe"}\n')
    refused(str(data), overrides=[f"data.path={data}"])


def test_a_missing_dataset_is_refused(world, refused):
    refused("nothing.jsonl", overrides=["data.path=nothing.jsonl"])


def test_a_warm_start_without_answers_is_refused(world, refused):
    refused("answer_key", overrides=["sft.answer_key=reply"], command="sft")


def test_a_prompt_that_leaves_no_room_for_a_response_is_refused(world, refused):
    refused("max_prompt_tokens", overrides=["rollout.max_context_tokens=8"])


def damage_weights(checkpoint, change):
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file(weights, checkpoint / "model.safetensors")


def test_nan_weights_are_named(checkpoint, refused):
    name = "model.layers.0.self_attn.q_proj.weight"
    damage_weights(checkpoint, lambda weights: weights[name].fill_(torch.nan))
    refused(name, overrides=[f"model.checkpoint={checkpoint}"])


def test_a_missing_tensor_is_named(checkpoint, refused):
    damage_weights(checkpoint, lambda weights: weights.pop("model.norm.weight"))
    refused("model.norm.weight", overrides=[f"model.checkpoint={checkpoint}"])


def test_a_tensor_that_nobody_claims_is_named(checkpoint, refused):
    damage_weights(checkpoint, lambda weights: weights.update(extra=torch.zeros(2)))
    refused("extra", overrides=[f"model.checkpoint={checkpoint}"])


def test_a_tensor_of_the_wrong_shape_is_named(checkpoint, refused):
    damage_weights(checkpoint, lambda weights: weights.update({"model.norm.weight": torch.zeros(3)}))
    refused("model.norm.weight", overrides=[f"model.checkpoint={checkpoint}"])


def test_truncated_weights_are_named(checkpoint, refused):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused("model.safetensors", overrides=[f"model.checkpoint={checkpoint}"])


def test_an_unknown_model_type_is_refused_with_the_installed_ones(checkpoint, refused):
    config = checkpoint / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "glm5"}))
    refused("glm5", "glm4", overrides=[f"model.checkpoint={checkpoint}"])


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_checkpoint_that_lacks_a_file_is_refused(checkpoint, refused, name):
    (checkpoint / name).unlink()
    refused(str(checkpoint), overrides=[f"model.checkpoint={checkpoint}"])


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_damaged_file_of_a_checkpoint_is_named(checkpoint, refused, name):
    (checkpoint / name).write_text("{")
    refused(str(checkpoint), overrides=[f"model.checkpoint={checkpoint}"])


def test_every_problem_of_a_recipe_is_said_at_once(refused):
    refused(
        "rollout.temprature",
        "optimizer.lr",
        "parallel.tp",
        "data.path",
        overrides=["rollout.temprature=1", "optimizer.lr=fast", "parallel.tp=3", "data.path=nothing.jsonl"],
    )


@pytest.mark.parametrize("key", ["model.load", "algorithm.kl.reference"])
def test_a_torn_checkpoint_beside_the_models_own_is_named(world, refused, key):
    torn = world.folder / "torn"
    torn.mkdir()
    (torn / "metadata.json").write_text("{")
    overrides = [f"{key}={torn}", "algorithm.kl.loss_coefficient=0.1"]
    refused(f"{torn}: is damaged: metadata.json cannot be read", overrides=overrides)


def test_an_evaluation_of_truncated_weights_leaves_nothing(world, checkpoint, capsys):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    out = world.folder / "samples"
    assert main(["eval", str(world.recipe), "--checkpoint", str(checkpoint), "--out", str(out)]) == 1
    assert "model.safetensors: is truncated or damaged" in capsys.readouterr().err
    assert not out.exists()
