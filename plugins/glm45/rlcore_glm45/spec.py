"""The architecture of GLM-4.5, 4.6 and 4.7, read from the config.json of their checkpoints.

Grouped-query attention with optional q, k, v biases and optional norms of each query and key head, the first
half of each head rotated as two halves, a few dense layers and then experts. Facts: the published config.json
files and transformers' modeling_glm4_moe.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlcore.errors import raise_if_any
from rlcore.models.arithmetic import linear_flops
from rlcore.models.experts import DENSE, MOE, Experts
from rlcore.models.grouped_attention import GroupedAttention
from rlcore.models.hf_config import block_fields, number_problems, read_rope
from rlcore.models.spec import LayerInfo, ModelSpec, mtp_layer_around

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig
    from transformers import PreTrainedModel

_SIZES = (
    "first_k_dense_replace",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_hidden_layers",
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
    vocab: int
    qk_norm: bool
    attention: GroupedAttention
    experts: Experts

    @classmethod
    def of(cls, hf_config: Mapping[str, Any]) -> "Shape":
        """Read the sizes; a key that may be absent has the default of transformers' Glm4MoeConfig.

        Raises RlcoreError for every key that is absent or contradicts another.
        """
        raise_if_any(number_problems(hf_config, _SIZES, ["rms_norm_eps"]))
        return cls(
            hidden=hf_config["hidden_size"],
            intermediate=hf_config["intermediate_size"],
            layers=hf_config["num_hidden_layers"],
            dense_layers=min(hf_config["first_k_dense_replace"], hf_config["num_hidden_layers"]),
            mtp_layers=hf_config.get("num_nextn_predict_layers", 1),
            vocab=hf_config["vocab_size"],
            qk_norm=hf_config.get("use_qk_norm", False),
            attention=GroupedAttention.of(hf_config, head_dim=None, qkv_bias=False),
            experts=Experts.of(hf_config),
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """What follows attention in each layer."""
        return (DENSE,) * self.dense_layers + (MOE,) * (self.layers - self.dense_layers)

    def layer(self, kind: str) -> LayerInfo:
        """Describe a layer: attention, norms, and an MLP or experts."""
        norms = 2 * self.hidden + 2 * self.attention.head_dim * self.qk_norm
        held, active = self.experts.layer_parameters(kind, self.hidden, self.intermediate)

        def flops(length: int) -> float:
            return self.attention.flops(length) + linear_flops(length, active)

        return LayerInfo(kind=kind, parameters=self.attention.parameters + norms + held, flops=flops)


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
            **shape.attention.transformer_config(),
            **block_fields(hf_config),
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
        serve_transformers=_serve,
    )


def _layer_specs(config: "TransformerConfig", vp_stage: int | None) -> "TransformerBlockSubmodules":
    from rlcore.models.layers import decoder_block

    return decoder_block(config, vp_stage)


def _serve(model: "PreTrainedModel") -> None:
    from rlcore.rollout.local_fused import fuse_attention

    fuse_attention(model, neighbours=False)
