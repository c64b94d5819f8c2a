"""Parameters and FLOPs of the parts of a transformer layer, for the layer tables of model plugins. No torch.

FLOPs are those of a forward pass, a multiply and an add counted as two, small terms (norms, rotations,
softmax, activations) left out.
"""


def attention_parameters(hidden: int, heads: int, groups: int, head_dim: int, *, qkv_bias: bool) -> int:
    """Elements of grouped-query attention: q, k, v and output projections, and the q, k, v biases."""
    qkv_width = (heads + 2 * groups) * head_dim
    return hidden * qkv_width + heads * head_dim * hidden + (qkv_width if qkv_bias else 0)


def gated_mlp_parameters(hidden: int, intermediate: int) -> int:
    """Elements of gate, up and down projections."""
    return 3 * hidden * intermediate


def linear_flops(length: int, parameters: int) -> float:
    """FLOPs of `length` tokens through matrices of `parameters` elements."""
    return 2.0 * length * parameters


def causal_attention_flops(length: int, heads: int, head_dim: int, value_dim: int | None = None) -> float:
    """FLOPs of scores and weighted values of one sequence: each token attends to itself and those before.

    `value_dim` is the width of values where it is not that of keys.
    """
    pairs = length * (length + 1) / 2
    return 2.0 * pairs * heads * (head_dim + (head_dim if value_dim is None else value_dim))
