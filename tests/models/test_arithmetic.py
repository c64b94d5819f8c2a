from rlcore.models.arithmetic import (
    attention_parameters,
    causal_attention_flops,
    gated_mlp_parameters,
    linear_flops,
)


def test_attention_counts_every_projection():
    assert attention_parameters(8, heads=4, groups=2, head_dim=3, qkv_bias=False) == 8 * 12 + 2 * 8 * 6 + 12 * 8
    assert attention_parameters(8, heads=4, groups=2, head_dim=3, qkv_bias=True) == 288 + 12 + 6 + 6


def test_a_gated_mlp_has_three_matrices():
    assert gated_mlp_parameters(8, 20) == 3 * 160


def test_a_multiply_and_an_add_count_as_two():
    assert linear_flops(length=5, parameters=7) == 70
    assert causal_attention_flops(length=3, heads=2, head_dim=4) == 2 * 2 * (1 + 2 + 3) * 8


def test_values_may_be_narrower_than_keys():
    same = causal_attention_flops(length=3, heads=2, head_dim=4)
    assert causal_attention_flops(length=3, heads=2, head_dim=6, value_dim=2) == same
