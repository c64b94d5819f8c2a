import random
from dataclasses import replace

import pytest
import torch
from rlcore_glm47_flash.bridge import flash_bridge
from rlcore_glm47_flash.spec import flash_spec

from rlcore.bridge.load import load_hf
from rlcore.models.hf_config import read_hf_config
from rlcore.testing.reference import gradients_of_both, packed_and_alone
from rlcore.testing.routers import choice_margins
from rlcore.trainer.parity import measure_parity

# Further apart than rounding brings the scores of the last expert chosen and the first one left out.
SMALLEST_MARGIN = 1e-6


def random_shape(seed):
    draw = random.Random(seed)
    layers = draw.choice([1, 2, 3, 4])
    heads = draw.choice([1, 2, 3, 4, 5])
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": draw.choice([16, 40, 96]),
        "kv_lora_rank": draw.choice([16, 24, 64]),
        "qk_nope_head_dim": draw.choice([8, 16, 24]),
        "qk_rope_head_dim": draw.choice([4, 8, 16]),
        "v_head_dim": draw.choice([8, 16, 40]),
        "hidden_size": draw.choice([32, 64, 96, 160]),
        "intermediate_size": draw.choice([48, 128, 200]),
        "moe_intermediate_size": draw.choice([16, 24, 40]),
        "num_hidden_layers": layers,
        "mlp_layer_types": draw.choice([None, None, draw.choices(["dense", "sparse"], k=layers)]),
        "n_routed_experts": draw.choice([4, 8, 12, 16]),
        "num_experts_per_tok": draw.choice([2, 3, 4]),
        "n_shared_experts": draw.choice([1, 1, 2]),
        "routed_scaling_factor": draw.choice([1.0, 1.8, 2.5]),
        "vocab_size": draw.choice([499, 512, 1023]),
        "rms_norm_eps": draw.choice([1e-5, 1e-6]),
        "rope_theta": draw.choice([1e4, 1e6]),
        "tie_word_embeddings": draw.random() < 0.25,
    }


def assert_parity(folder):
    spec = flash_spec(read_hf_config(folder))
    with choice_margins() as margins:
        parity = measure_parity(spec, flash_bridge(spec), folder)
    assert min(margins, default=1.0) > SMALLEST_MARGIN
    assert parity.max_rel_logit_diff <= 3e-6
    assert parity.max_rel_logit_diff <= 2 * parity.reference_noise


@pytest.mark.parametrize("seed", range(24))
def test_logits_of_random_shapes_equal_those_of_transformers(megatron, make_checkpoint, seed):
    assert_parity(make_checkpoint(seed, **random_shape(seed)))


@pytest.mark.parametrize(("eps", "differs"), [(1e-6, False), (1e-5, True)])
def test_transformers_alone_uses_1e_6_in_the_norms_of_latents(megatron, make_checkpoint, eps, differs):
    folder = make_checkpoint(rms_norm_eps=eps)
    spec = replace(flash_spec(read_hf_config(folder)), mend_transformers=lambda model: None)
    parity = measure_parity(spec, flash_bridge(spec), folder)
    assert (parity.max_rel_logit_diff > 1e-5) == differs
    assert parity.holds != differs


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
