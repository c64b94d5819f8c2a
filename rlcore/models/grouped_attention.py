"""Grouped-query attention as config.json describes it: Megatron's fields, and its parameters and FLOPs.

GQA (arXiv 2305.13245): several query heads share a head of keys and values. Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlcore.errors import fail, raise_if_any
from rlcore.models.arithmetic import attention_parameters, causal_attention_flops, linear_flops
from rlcore.models.hf_config import number_problems

_SIZES = ("hidden_size", "num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True)
class GroupedAttention:
    """The attention of one layer: `heads` of queries share `groups` of keys and values."""

    hidden: int
    heads: int
    groups: int
    head_dim: int
    qkv_bias: bool

    @classmethod
    def of(cls, hf_config: Mapping[str, Any], *, head_dim: int | None, qkv_bias: bool) -> "GroupedAttention":
        """Read the keys that transformers and the hub share; raises RlcoreError for all that cannot be.

        `head_dim` and `qkv_bias` are the family's own, for a file that names none; None is an equal share of
        the hidden size.
        """
        raise_if_any(number_problems(hf_config, _SIZES))
        hidden, heads, groups = (hf_config[key] for key in _SIZES)
        if heads % groups:
            problem = f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}"
            raise fail("config.json", problem)
        width = hf_config.get("head_dim") or head_dim or hidden // heads
        return cls(hidden, heads, groups, width, hf_config.get("attention_bias", qkv_bias))

    def transformer_config(self) -> dict[str, Any]:
        """Fields of Megatron's TransformerConfig."""
        return {
            "num_attention_heads": self.heads,
            "num_query_groups": self.groups,
            "kv_channels": self.head_dim,
            "add_qkv_bias": self.qkv_bias,
        }

    @property
    def parameters(self) -> int:
        """Elements of its projections, biases included."""
        return attention_parameters(self.hidden, self.heads, self.groups, self.head_dim, qkv_bias=self.qkv_bias)

    def flops(self, length: int) -> float:
        """Forward FLOPs of a sequence; biases, which are small terms, are left out."""
        matrices = attention_parameters(self.hidden, self.heads, self.groups, self.head_dim, qkv_bias=False)
        return linear_flops(length, matrices) + causal_attention_flops(length, self.heads, self.head_dim)
