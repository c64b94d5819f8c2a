import random

import pytest
import torch
from rlcore_glm4.bridge import glm4_bridge
from rlcore_glm4.spec import glm4_spec

from rlcore.bridge.load import load_hf
from rlcore.models.hf_config import read_hf_config
from rlcore.testing.reference import gradients_of_both, packed_and_alone
from rlcore.trainer.parity import measure_parity


def random_shape(seed):
    draw = random.Random(seed)
    groups = draw.choice([1, 2, 3, 4])
    return {
        "num_key_value_heads": groups,
        "num_attention_heads": groups * draw.choice([1, 2, 3, 5]),
        "head_dim": draw.choice([8, 16, 32, 64]),
        "hidden_size": draw.choice([32, 64, 96, 160]),
        "intermediate_size": draw.choice([48, 128, 200]),
        "num_hidden_layers": draw.choice([1, 2, 3, 4]),
        "vocab_size": draw.choice([499, 512, 1023, 3]),
        "attention_bias": draw.random() < 0.5,
        "rms_norm_eps": draw.choice([1e-5, 1e-6]),
        "rope_theta": draw.choice([1e4, 5e5]),
        "tie_word_embeddings": draw.random() < 0.25,
        "partial_rotary_factor": draw.choice([0.5, 0.5, 1.0]),
    }


def assert_parity(folder):
    spec = glm4_spec(read_hf_config(folder))
    parity = measure_parity(spec, glm4_bridge(spec), folder)
    assert parity.max_rel_logit_diff <= 3e-6
    assert parity.max_rel_logit_diff <= 2 * parity.reference_noise


@pytest.mark.parametrize("seed", range(24))
def test_logits_of_random_shapes_equal_those_of_transformers(megatron, make_checkpoint, seed):
    assert_parity(make_checkpoint(seed, **random_shape(seed)))


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_logits_equal_with_few_key_heads_with_and_without_bias(megatron, make_checkpoint, groups, bias):
    shape = {"num_attention_heads": 6, "num_key_value_heads": groups, "attention_bias": bias}
    assert_parity(make_checkpoint(**shape))


def test_gradients_equal_those_of_transformers(build, make_checkpoint):
    folder = make_checkpoint()
    spec, bridge, (model,) = build(folder)
    ours, theirs = gradients_of_both(spec, bridge, model, folder)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


def test_packed_sequences_do_not_see_each_other(build, make_checkpoint):
    folder = make_checkpoint()
    spec, bridge, (model,) = build(folder)
    load_hf([model], bridge, folder)
    torch.testing.assert_close(*packed_and_alone(spec, model), rtol=1e-5, atol=1e-5)
