import random

import pytest
import torch
from rlcore_glm45.bridge import glm45_bridge
from rlcore_glm45.spec import glm45_spec

from rlcore.bridge.transforms import Replicated
from rlcore.models.hf_config import read_hf_config
from rlcore.testing.reference import gradients_of_both
from rlcore.testing.routers import choice_margins
from rlcore.testing.tiny import rewrite
from rlcore.trainer.parity import measure_parity

# Further apart than rounding brings the scores of the last expert chosen and the first one left out.
SMALLEST_MARGIN = 1e-6


def random_shape(seed):
    draw = random.Random(seed)
    groups, experts = draw.choice([1, 2, 3, 4]), draw.choice([4, 8, 12, 16])
    return {
        "num_key_value_heads": groups,
        "num_attention_heads": groups * draw.choice([1, 2, 3, 5]),
        "head_dim": draw.choice([8, 16, 32, 64]),
        "hidden_size": draw.choice([32, 64, 96, 160]),
        "intermediate_size": draw.choice([48, 128, 200]),
        "moe_intermediate_size": draw.choice([16, 24, 40]),
        "num_hidden_layers": draw.choice([1, 2, 3, 4]),
        "first_k_dense_replace": draw.choice([0, 1, 1, 2, 3]),
        "n_routed_experts": experts,
        "num_experts_per_tok": draw.choice([2, 3, 4]),
        "n_shared_experts": draw.choice([1, 1, 2]),
        "routed_scaling_factor": draw.choice([1.0, 1.8, 2.5]),
        "vocab_size": draw.choice([499, 512, 1023, 3]),
        "attention_bias": draw.random() < 0.5,
        "use_qk_norm": draw.random() < 0.5,
        "rms_norm_eps": draw.choice([1e-5, 1e-6]),
        "rope_theta": draw.choice([1e4, 1e6]),
        "tie_word_embeddings": draw.random() < 0.25,
        "partial_rotary_factor": draw.choice([0.5, 0.5, 1.0]),
    }


def assert_parity(folder):
    spec = glm45_spec(read_hf_config(folder))
    with choice_margins() as margins:
        parity = measure_parity(spec, glm45_bridge(spec), folder)
    assert min(margins, default=1.0) > SMALLEST_MARGIN
    assert parity.max_rel_logit_diff <= 3e-6
    assert parity.max_rel_logit_diff <= 2 * parity.reference_noise


@pytest.mark.parametrize("seed", range(16))
def test_logits_of_random_shapes_equal_those_of_transformers(megatron, make_checkpoint, seed):
    assert_parity(make_checkpoint(seed, **random_shape(seed)))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_logits_equal_with_and_without_norms_of_queries_and_keys_and_biases(
    megatron, make_checkpoint, norm, bias
):
    assert_parity(make_checkpoint(use_qk_norm=norm, attention_bias=bias))


def test_logits_equal_where_experts_are_chosen_from_the_best_groups(megatron, make_checkpoint):
    assert_parity(make_checkpoint(n_routed_experts=16, num_experts_per_tok=4, n_group=4, topk_group=2))


def test_tokens_whose_experts_are_chosen_by_a_near_tie_are_left_out(megatron, make_checkpoint):
    folder = make_checkpoint(n_routed_experts=32, first_k_dense_replace=2)

    def liken(tensors):
        tensors["model.layers.2.mlp.gate.weight"][1] = tensors["model.layers.2.mlp.gate.weight"][0] * (1 + 1e-7)
        tensors["model.layers.2.mlp.gate.e_score_correction_bias"][:2] = 0.05

    rewrite(folder, liken)
    spec = glm45_spec(read_hf_config(folder))
    parity = measure_parity(spec, glm45_bridge(spec), folder)
    assert parity.holds
    assert parity.left_out > 0
    assert parity.tokens + parity.left_out == 145


def test_experts_in_another_order_fail(megatron, make_checkpoint, monkeypatch):
    folder = make_checkpoint()
    spec = glm45_spec(read_hf_config(folder))
    read = Replicated.read

    def shuffled(transform, sources, shape, shard):
        tensor = read(transform, sources, shape, shard)
        return tensor.flip(0) if shape == (8, 64) else tensor

    monkeypatch.setattr(Replicated, "read", shuffled)
    parity = measure_parity(spec, glm45_bridge(spec), folder)
    assert not parity.holds


def test_gradients_equal_those_of_transformers(build, make_checkpoint):
    folder = make_checkpoint()
    spec, bridge, (model,) = build(folder)
    ours, theirs = gradients_of_both(spec, bridge, model, folder)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())
