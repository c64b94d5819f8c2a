"""Multi-head latent attention as config.json describes it: Megatron's fields, and its parameters and FLOPs.

DeepSeek-V2 (arXiv 2405.04434, section 2.1): queries come from one normalised latent, keys and values from
another, and a part of each query is rotated against one rotated key that all heads share. Imports no torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlcore.errors import Problem, raise_if_any
from rlcore.models.arithmetic import causal_attention_flops, linear_flops
from rlcore.models.hf_config import Rope, number_problems, read_rope

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SIZES = (
    "hidden_size",
    "num_attention_heads",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
)


@dataclass(frozen=True)
class LatentAttention:
    """The attention of one layer: widths of its latents, and of each head's parts."""

    hidden: int
    heads: int
    query_latent: int
    key_value_latent: int
    unrotated: int
    rotated: int
    value: int
    rope: Rope

    @classmethod
    def of(cls, hf_config: Mapping[str, Any]) -> "LatentAttention":
        """Read the keys that transformers and the hub share; raises RlcoreError for all that cannot be."""
        raise_if_any(number_problems(hf_config, _SIZES))
        rope = read_rope(hf_config, fraction=1.0)
        raise_if_any(_unsupported(hf_config, rope))
        return cls(*(hf_config[key] for key in _SIZES), rope=rope)

    def transformer_config(self) -> dict[str, Any]:
        """Fields of Megatron's MLATransformerConfig. Its default is YaRN, which these values turn off."""
        return {
            "num_attention_heads": self.heads,
            "q_lora_rank": self.query_latent,
            "kv_lora_rank": self.key_value_latent,
            "qk_head_dim": self.unrotated,
            "qk_pos_emb_head_dim": self.rotated,
            "v_head_dim": self.value,
            "kv_channels": self.unrotated + self.rotated,
            "qk_layernorm": True,
            "rope_type": "rope",
            "rotary_base": self.rope.theta,
            "rotary_percent": self.rope.fraction,
            "rotary_scaling_factor": 1.0,
        }

    @property
    def parameters(self) -> int:
        """Elements of a layer's attention, the two latents' norms included."""
        return self.matrices + self.query_latent + self.key_value_latent

    @property
    def matrices(self) -> int:
        """Elements of its projections: down to the latents, up from them, and out."""
        query, key = self.unrotated + self.rotated, self.unrotated + self.value
        down = self.hidden * (self.query_latent + self.key_value_latent + self.rotated)
        up = self.heads * (self.query_latent * query + self.key_value_latent * key)
        return down + up + self.heads * self.value * self.hidden

    def flops(self, length: int) -> float:
        """Forward FLOPs of a sequence, keys and values of every head made from the latent."""
        width = self.unrotated + self.rotated
        scores = causal_attention_flops(length, self.heads, width, value_dim=self.value)
        return linear_flops(length, self.matrices) + scores


def _unsupported(hf_config: Mapping[str, Any], rope: Rope) -> Iterator[Problem]:
    """What Megatron's latent attention has no means for."""
    for key, value, only in (
        ("attention_bias", hf_config.get("attention_bias", False), False),
        ("rope_interleave", hf_config.get("rope_interleave", True), True),
        ("partial_rotary_factor", rope.fraction, 1.0),
    ):
        if value != only:
            yield Problem("config.json", f"{key} {value} is not supported with latent attention, only {only}")


def set_latent_epsilon(model: "PreTrainedModel", eps: float) -> None:
    """Give the latents' norms of a transformers model this epsilon: it builds them with 1e-6, whatever
    `rms_norm_eps` says, unlike the engines that serve these models and Megatron, which trains them.
    """
    for name, module in model.named_modules():
        if name.endswith(("q_a_layernorm", "kv_a_layernorm")):
            module.variance_epsilon = eps
