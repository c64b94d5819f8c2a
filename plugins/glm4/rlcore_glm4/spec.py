"""GLM-4's architecture, read from the config.json of its checkpoints.

Grouped-query attention with optional q, k, v biases, half of each head rotated in interleaved pairs, a gated
MLP, and four norms a layer. Facts: the published config.json files and transformers' modeling_glm4.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlcore.errors import fail, raise_if_any
from rlcore.models.arithmetic import (
    attention_parameters,
    causal_attention_flops,
    gated_mlp_parameters,
    linear_flops,
)
from rlcore.models.hf_config import number_problems, read_rope
from rlcore.models.spec import LayerInfo, ModelSpec

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
)


@dataclass(frozen=True)
class Shape:
    """The sizes that spec and bridge share."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    groups: int
    head_dim: int
    vocab: int
    qkv_bias: bool

    @classmethod
    def of(cls, hf_config: Mapping[str, Any]) -> "Shape":
        """Read the sizes; a key that may be absent has the default of transformers' Glm4Config.

        Raises RlcoreError for every key that is absent or contradicts another.
        """
        raise_if_any(number_problems(hf_config, _SIZES, ["rms_norm_eps"]))
        heads, groups = hf_config["num_attention_heads"], hf_config["num_key_value_heads"]
        shape = cls(
            hidden=hf_config["hidden_size"],
            intermediate=hf_config["intermediate_size"],
            layers=hf_config["num_hidden_layers"],
            heads=heads,
            groups=groups,
            head_dim=hf_config.get("head_dim", 128),
            vocab=hf_config["vocab_size"],
            qkv_bias=hf_config.get("attention_bias", True),
        )
        if heads % groups:
            problem = f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}"
            raise fail("config.json", problem)
        return shape

    @property
    def parameters(self) -> int:
        """Elements of one layer, its four norms included."""
        return self.matrices + (self.heads + 2 * self.groups) * self.head_dim * self.qkv_bias + 4 * self.hidden

    @property
    def matrices(self) -> int:
        """Elements of one layer's matrices."""
        attention = attention_parameters(self.hidden, self.heads, self.groups, self.head_dim, qkv_bias=False)
        return attention + gated_mlp_parameters(self.hidden, self.intermediate)

    def flops(self, length: int) -> float:
        """Forward FLOPs of a sequence in one layer."""
        return linear_flops(length, self.matrices) + causal_attention_flops(length, self.heads, self.head_dim)


def glm4_spec(hf_config: Mapping[str, Any]) -> ModelSpec:
    """Describe a GLM-4 checkpoint by its config.json."""
    shape = Shape.of(hf_config)
    rope = read_rope(hf_config, fraction=0.5)
    layer = LayerInfo(kind="dense", parameters=shape.parameters, flops=shape.flops)
    return ModelSpec(
        model_type="glm4",
        hf_config=hf_config,
        hidden_size=shape.hidden,
        vocab_size=shape.vocab,
        layers=(layer,) * shape.layers,
        transformer_config={
            "num_attention_heads": shape.heads,
            "num_query_groups": shape.groups,
            "kv_channels": shape.head_dim,
            "ffn_hidden_size": shape.intermediate,
            "normalization": "RMSNorm",
            "layernorm_epsilon": hf_config["rms_norm_eps"],
            "gated_linear_unit": True,
            "activation_func": hf_config.get("hidden_act", "silu"),
            "add_bias_linear": False,
            "add_qkv_bias": shape.qkv_bias,
            "rotary_interleaved": True,
        },
        model_args={
            "max_sequence_length": hf_config["max_position_embeddings"],
            "position_embedding_type": "rope",
            "rotary_base": rope.theta,
            "rotary_percent": rope.fraction,
        },
        layer_specs=_layer_specs,
        tied_embeddings=bool(hf_config.get("tie_word_embeddings", False)),
    )


def _layer_specs(config: "TransformerConfig", vp_stage: int | None) -> "TransformerBlockSubmodules":
    from rlcore.models.layers import SandwichNormLayer, decoder_block

    return decoder_block(config, vp_stage, layer=SandwichNormLayer)
