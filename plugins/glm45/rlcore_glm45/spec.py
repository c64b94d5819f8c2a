"""The architecture of GLM-4.5, 4.6 and 4.7, read from the config.json of their checkpoints.

Grouped-query attention with optional q, k, v biases and optional norms of each query and key head, the first
half of each head rotated as two halves, a few dense layers and then experts. Facts: the published config.json
files and transformers' modeling_glm4_moe.
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
from rlcore.models.experts import DENSE, MOE, Experts
from rlcore.models.hf_config import number_problems, read_rope
from rlcore.models.spec import LayerInfo, ModelSpec, mtp_layer_around

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig

_SIZES = (
    "first_k_dense_replace",
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
    """The sizes that spec and bridge share. `mtp_layers` follow the others and predict further tokens."""

    hidden: int
    intermediate: int
    layers: int
    dense_layers: int
    mtp_layers: int
    heads: int
    groups: int
    head_dim: int
    vocab: int
    qkv_bias: bool
    qk_norm: bool
    experts: Experts

    @classmethod
    def of(cls, hf_config: Mapping[str, Any]) -> "Shape":
        """Read the sizes; a key that may be absent has the default of transformers' Glm4MoeConfig.

        Raises RlcoreError for every key that is absent or contradicts another.
        """
        raise_if_any(number_problems(hf_config, _SIZES, ["rms_norm_eps"]))
        heads, groups = hf_config["num_attention_heads"], hf_config["num_key_value_heads"]
        shape = cls(
            hidden=hf_config["hidden_size"],
            intermediate=hf_config["intermediate_size"],
            layers=hf_config["num_hidden_layers"],
            dense_layers=min(hf_config["first_k_dense_replace"], hf_config["num_hidden_layers"]),
            mtp_layers=hf_config.get("num_nextn_predict_layers", 1),
            heads=heads,
            groups=groups,
            head_dim=hf_config.get("head_dim") or hf_config["hidden_size"] // heads,
            vocab=hf_config["vocab_size"],
            qkv_bias=hf_config.get("attention_bias", False),
            qk_norm=hf_config.get("use_qk_norm", False),
            experts=Experts.of(hf_config),
        )
        if heads % groups:
            problem = f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}"
            raise fail("config.json", problem)
        return shape

    @property
    def kinds(self) -> tuple[str, ...]:
        """What follows attention in each layer."""
        return (DENSE,) * self.dense_layers + (MOE,) * (self.layers - self.dense_layers)

    def layer(self, kind: str) -> LayerInfo:
        """Describe a layer by the elements of its matrices: attention's, and those of its MLP or experts."""
        attention = attention_parameters(self.hidden, self.heads, self.groups, self.head_dim, qkv_bias=False)
        biases = (self.heads + 2 * self.groups) * self.head_dim * self.qkv_bias
        norms = 2 * self.hidden + 2 * self.head_dim * self.qk_norm
        if kind == DENSE:
            held = active = gated_mlp_parameters(self.hidden, self.intermediate)
        else:
            held, active = self.experts.parameters(self.hidden), self.experts.active_parameters(self.hidden)

        def flops(length: int) -> float:
            matrices = linear_flops(length, attention + active)
            return matrices + causal_attention_flops(length, self.heads, self.head_dim)

        return LayerInfo(kind=kind, parameters=attention + biases + norms + held, flops=flops)


def glm45_spec(hf_config: Mapping[str, Any]) -> ModelSpec:
    """Describe a GLM-4.5, 4.6 or 4.7 checkpoint by its config.json."""
    shape = Shape.of(hf_config)
    rope = read_rope(hf_config, fraction=0.5)
    layers = {kind: shape.layer(kind) for kind in (DENSE, MOE)}
    return ModelSpec(
        model_type="glm4_moe",
        hf_config=hf_config,
        hidden_size=shape.hidden,
        vocab_size=shape.vocab,
        layers=tuple(layers[kind] for kind in shape.kinds),
        mtp_layers=(mtp_layer_around(layers[MOE], shape.hidden),) * shape.mtp_layers,
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
            "qk_layernorm": shape.qk_norm,
            **shape.experts.transformer_config(shape.kinds),
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
    from rlcore.models.layers import decoder_block

    return decoder_block(config, vp_stage)
