from types import SimpleNamespace

import pytest

from rlcore.errors import RlcoreError
from rlcore.models.latent import LatentAttention, set_latent_epsilon

CONFIG = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 2,
    "v_head_dim": 5,
    "rope_theta": 1e6,
}


def test_projections_go_down_to_the_latents_and_up_from_them_by_heads():
    attention = LatentAttention.of(CONFIG)
    down, up, out = 32 * (12 + 10 + 2), 12 * 4 * 8 + 10 * 4 * (6 + 5), 4 * 5 * 32
    assert attention.matrices == down + up + out
    assert attention.parameters == attention.matrices + 12 + 10


def test_scores_are_as_wide_as_keys_and_sums_as_values():
    attention = LatentAttention.of(CONFIG)
    assert attention.flops(3) == 2 * 3 * attention.matrices + 2 * (1 + 2 + 3) * 4 * (8 + 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias True is not supported with latent attention, only False"),
        ({"rope_interleave": False}, "rope_interleave False is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"q_lora_rank": None}, "q_lora_rank must be a whole number, not None"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type 'yarn' is not supported"),
    ],
)
def test_what_megatron_would_compute_otherwise_is_refused(change, message):
    with pytest.raises(RlcoreError, match=message):
        LatentAttention.of({**CONFIG, **change})


def test_only_the_norms_of_latents_are_given_another_epsilon():
    names = ("0.input_layernorm", "0.self_attn.q_a_layernorm", "0.self_attn.kv_a_layernorm")
    norms = {name: SimpleNamespace(variance_epsilon=1e-6) for name in names}
    set_latent_epsilon(SimpleNamespace(named_modules=norms.items), 1e-5)
    assert [norm.variance_epsilon for norm in norms.values()] == [1e-6, 1e-5, 1e-5]
