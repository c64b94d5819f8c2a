"""What becomes of a checkpoint's MTP layer in a run: kept, trained, or missed before anything starts."""

import shutil

import pytest
import torch
from rlcore_glm45.demo import DEMO
from safetensors.torch import load_file, save_file

LAYER = "model.layers.2."
TRAINED = ("mtp.num_layers=1", "mtp.train=true", "mtp.loss_scaling_factor=1.0")


@pytest.fixture(scope="module")
def drafting(tmp_path_factory):
    """A tiny model with an MTP layer."""
    folder = tmp_path_factory.mktemp("drafting")
    DEMO.write(folder)
    return folder / "model"


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def repeats(tensors):
    return [
        torch.equal(tensors[f"{LAYER}embed_tokens.weight"], tensors["model.embed_tokens.weight"]),
        torch.equal(tensors[f"{LAYER}shared_head.head.weight"], tensors["lm_head.weight"]),
    ]


def changed(before, after):
    """Tensors of the layer's own that are others now."""
    assert before.keys() == after.keys()
    tables = ("embed_tokens.weight", "shared_head.head.weight")
    own = [name for name in before if name.startswith(LAYER) and not name.endswith(tables)]
    return {name for name in own if not torch.equal(before[name], after[name])}


def test_a_layer_that_is_not_asked_for_stays_as_it_was_but_for_the_tables_it_repeats(world, drafting):
    assert world.train_only("kept", f"model.checkpoint={drafting}") == 0
    before, after = tensors_of(drafting), tensors_of(world.folder / "kept/hf")
    assert not changed(before, after)
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert repeats(after) == [True, True]
    assert not any("mtp/" in name for name in world.rows("kept")[-1])


def test_a_trained_layer_is_reported_and_saved(world, drafting):
    assert world.train_only("trained", f"model.checkpoint={drafting}", *TRAINED) == 0
    after = tensors_of(world.folder / "trained/hf")
    assert f"{LAYER}eh_proj.weight" in changed(tensors_of(drafting), after)
    assert repeats(after) == [True, True]
    rows = world.rows("trained")
    assert rows[-1]["mtp/acceptance"] > rows[0]["mtp/acceptance"] > 0
    assert rows[-1]["mtp/loss"] < rows[0]["mtp/loss"]


def test_a_layer_that_the_files_lack_is_missed_before_the_run(world, drafting, capsys):
    folder = shutil.copytree(drafting, world.folder / "saved by transformers")
    without = {name: t for name, t in tensors_of(folder).items() if not name.startswith(LAYER)}
    save_file(without, folder / "model.safetensors", metadata={"format": "pt"})
    assert world.train_only("missed", f"model.checkpoint={folder}", *TRAINED) == 1
    message = capsys.readouterr().err
    assert "mtp.num_layers" in message
    assert f"such as {LAYER}enorm.weight" in message
    assert "transformers drops them" in message
    assert not (world.folder / "missed").exists()


def test_so_is_one_that_the_reference_lacks(world, drafting, capsys):
    folder = shutil.copytree(drafting, world.folder / "reference")
    without = {name: t for name, t in tensors_of(folder).items() if not name.startswith(LAYER)}
    save_file(without, folder / "model.safetensors", metadata={"format": "pt"})
    kl = ("algorithm.kl.loss_coefficient=0.1", f"algorithm.kl.reference={folder}")
    assert world.train_only("reference", f"model.checkpoint={drafting}", *TRAINED, *kl) == 1
    message = capsys.readouterr().err
    assert "algorithm.kl.reference" in message
    assert f"such as {LAYER}enorm.weight" in message


def test_a_model_without_such_layers_says_so(world, capsys):
    assert world.train_only("none", *TRAINED) == 1
    assert "the model has no MTP layers" in capsys.readouterr().err
