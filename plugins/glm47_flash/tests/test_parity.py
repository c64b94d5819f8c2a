import random
from dataclasses import replace

import pytest
import torch
from rlcore_glm47_flash.bridge import flash_bridge
from rlcore_glm47_flash.spec import flash_spec
from transformers import AutoModelForCausalLM

from rlcore.bridge.load import load_hf
from rlcore.models.attention import PackedSequences
from rlcore.models.forward import forward_hidden, output_weight
from rlcore.models.hf_config import read_hf_config
from rlcore.rollout.local_weights import unstacked
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
    load_hf([model], bridge, folder)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    spec.mend_transformers(reference)
    tokens = torch.randint(499, (1, 50), generator=torch.Generator().manual_seed(0))

    hidden = forward_hidden(model, tokens, PackedSequences.of([50]))[:, 0]
    (hidden @ output_weight(model).T).log_softmax(-1)[:, 7].sum().backward()
    reference(tokens).logits[0].log_softmax(-1)[:, 7].sum().backward()

    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    theirs = hub_gradients(reference)
    for name, gradient in theirs.items():
        entry = bridge.by_hf[name]
        written = entry.transform.write([ours[entry.megatron]])[entry.hf.index(name)]
        torch.testing.assert_close(written, gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())
    assert theirs.keys() == {name for entry in bridge.entries if entry.megatron in ours for name in entry.hf}


def hub_gradients(model):
    """Gradients by the names of a checkpoint, the stacked ones of experts taken apart."""
    return {
        hub_name: gradient
        for name, parameter in model.named_parameters()
        for hub_name, gradient in unstacked(name, parameter.grad)
    }


def test_packed_sequences_do_not_see_each_other(build, make_checkpoint):
    folder = make_checkpoint()
    _, bridge, (model,) = build(folder)
    load_hf([model], bridge, folder)
    lengths = [1, 40, 3, 77, 20, 64, 2, 19]
    tokens = torch.randint(499, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    packed = forward_hidden(model, tokens, PackedSequences.of(lengths))
    alone = [
        forward_hidden(model, part, PackedSequences.of([part.shape[1]])) for part in tokens.split(lengths, 1)
    ]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-5, atol=1e-5)
