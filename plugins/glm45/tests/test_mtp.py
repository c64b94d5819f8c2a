"""The layer that predicts the token after next, against transformers' own model of it."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlcore.bridge.export import Exporter, save_hf
from rlcore.bridge.load import load_hf
from rlcore.cli.main import main
from rlcore.testing.reference import mtp_logits_of_both
from rlcore.testing.routers import choice_margins
from rlcore.testing.tiny import tiny_mtp_layer

SHAPES = [
    {},
    {"attention_bias": False, "use_qk_norm": False, "num_key_value_heads": 1, "n_shared_experts": 2},
    {"first_k_dense_replace": 0, "n_routed_experts": 12, "num_experts_per_tok": 3},
]


@pytest.fixture
def load(build):
    """Gives spec, bridge and stages of a checkpoint, its MTP layer included."""

    def make(folder):
        spec, bridge, stages = build(folder, mtp_layers=1)
        load_hf(stages, bridge, folder)
        return spec, bridge, stages

    return make


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(load, make_checkpoint, shape):
    folder = make_checkpoint(**shape)
    tiny_mtp_layer(folder, jitter=0.1)
    spec, _, (model,) = load(folder)
    with choice_margins() as margins:
        ours, theirs = mtp_logits_of_both(spec, model, folder)
    assert min(margins) > 1e-5
    assert (ours - theirs).abs().max() <= 3e-6 * theirs.abs().max()


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_comes_back_bit_for_bit_with_its_mtp_layer(load, make_checkpoint, tmp_path, tied):
    folder = make_checkpoint(tie_word_embeddings=tied)
    tiny_mtp_layer(folder, jitter=0.1)
    _, bridge, stages = load(folder)
    save_hf(Exporter(stages, bridge), tmp_path / "saved", source=folder)
    original, saved = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "saved"))
    assert "model.layers.3.mlp.experts.7.down_proj.weight" in saved
    assert original.keys() == saved.keys()
    assert all(torch.equal(original[name], saved[name]) for name in original)


def test_repeated_tables_follow_those_that_were_trained(load, make_checkpoint, tmp_path):
    folder = make_checkpoint()
    tiny_mtp_layer(folder)
    _, bridge, (model,) = load(folder)
    with torch.no_grad():
        model.embedding.word_embeddings.weight.add_(1.0)
    save_hf(Exporter([model], bridge), tmp_path / "saved", source=folder)
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert torch.equal(saved["model.layers.3.embed_tokens.weight"], saved["model.embed_tokens.weight"])


def test_a_layer_that_lacks_an_expert_is_not_sound(make_checkpoint, capsys):
    folder = make_checkpoint()
    tiny_mtp_layer(folder, jitter=0.1)
    assert main(["verify", str(folder)]) == 0
    tensors = load_file(folder / "model.safetensors")
    lost = "model.layers.3.mlp.experts.5.down_proj.weight"
    save_file({name: t for name, t in tensors.items() if name != lost}, folder / "model.safetensors")
    assert main(["verify", str(folder)]) == 1
    assert f"needs {lost}, which the checkpoint lacks" in capsys.readouterr().err
