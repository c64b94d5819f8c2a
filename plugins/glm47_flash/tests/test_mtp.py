"""The layer that predicts the token after next, against transformers' own model of it."""

import pytest
import torch
from safetensors.torch import load_file

from rlcore.bridge.export import Exporter, save_hf
from rlcore.bridge.load import load_hf
from rlcore.testing.reference import mtp_logits_of_both
from rlcore.testing.routers import choice_margins
from rlcore.testing.tiny import tiny_mtp_layer


@pytest.fixture
def load(build):
    """Gives spec, bridge and stages of a checkpoint, its MTP layer included."""

    def make(folder):
        spec, bridge, stages = build(folder, mtp_layers=1)
        load_hf(stages, bridge, folder)
        return spec, bridge, stages

    return make


def announce_draft_layer(model):
    """Say what transformers says for no model of this type."""
    model.config.num_mtp_layers, model.config.mtp_mlp_layer_types = 1, ["sparse"]


@pytest.mark.parametrize("shape", [{}, {"n_routed_experts": 12, "num_experts_per_tok": 3, "v_head_dim": 16}])
def test_logits_are_those_of_transformers(load, make_checkpoint, shape):
    folder = make_checkpoint(num_nextn_predict_layers=1, **shape)
    tiny_mtp_layer(folder, jitter=0.1)
    spec, _, (model,) = load(folder)
    with choice_margins() as margins:
        ours, theirs = mtp_logits_of_both(spec, model, folder, announce_draft_layer)
    assert min(margins) > 1e-5
    assert (ours - theirs).abs().max() <= 3e-6 * theirs.abs().max()


def test_a_checkpoint_comes_back_bit_for_bit_with_its_mtp_layer(load, make_checkpoint, tmp_path):
    folder = make_checkpoint(num_nextn_predict_layers=1)
    tiny_mtp_layer(folder, jitter=0.1)
    _, bridge, stages = load(folder)
    save_hf(Exporter(stages, bridge), tmp_path / "saved", source=folder)
    original, saved = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "saved"))
    assert "model.layers.3.mlp.experts.7.down_proj.weight" in saved
    assert original.keys() == saved.keys()
    assert all(torch.equal(original[name], saved[name]) for name in original)
