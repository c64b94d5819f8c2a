"""GLM-4's architecture, read from the config.json of its checkpoints.

Grouped-query attention with optional q, k, v biases, half of each head rotated in interleaved pairs, a gated
MLP, and four norms a layer. Facts: the published config.json files and transformers' modeling_glm4.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlcore.errors import raise_if_any
from rlcore.models.arithmetic import gated_mlp_parameters, linear_flops
from rlcore.models.grouped_attention import GroupedAttention
from rlcore.models.hf_config import block_fields, number_problems, read_rope
from rlcore.models.spec import LayerInfo, ModelSpec

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig
    from transformers import PreTrainedModel

_SIZES = ("hidden_size", "intermediate_size", "max_position_embeddings", "num_hidden_layers", "vocab_size")


@dataclass(frozen=True)
class Shape:
    """The sizes that spec and bridge share."""

    hidden: int
    intermediate: int
    layers: int
    vocab: int
    attention: GroupedAttention

    @classmethod
    def of(cls, hf_config: Mapping[str, Any]) -> "Shape":
        """Read the sizes; a key that may be absent has the default of transformers' Glm4Config.

        Raises RlcoreError for every key that is absent or contradicts another.
        """
        raise_if_any(number_problems(hf_config, _SIZES, ["rms_norm_eps"]))
        return cls(
            hidden=hf_config["hidden_size"],
            intermediate=hf_config["intermediate_size"],
            layers=hf_config["num_hidden_layers"],
            vocab=hf_config["vocab_size"],
            attention=GroupedAttention.of(hf_config, head_dim=128, qkv_bias=True),
        )

    @property
    def parameters(self) -> int:
        """Elements of one layer, its four norms included."""
        return self.attention.parameters + self.mlp + 4 * self.hidden

    @property
    def mlp(self) -> int:
        """Elements of one layer's MLP."""
        return gated_mlp_parameters(self.hidden, self.intermediate)

    def flops(self, length: int) -> float:
        """Forward FLOPs of a sequence in one layer."""
        return self.attention.flops(length) + linear_flops(length, self.mlp)


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
            **shape.attention.transformer_config(),
            **block_fields(hf_config),
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
        shares_prompts=True,
        serve_transformers=_serve,
    )


def _layer_specs(config: "TransformerConfig", vp_stage: int | None) -> "TransformerBlockSubmodules":
    from rlcore.models.layers import SandwichNormLayer, decoder_block

    return decoder_block(config, vp_stage, layer=SandwichNormLayer)


def _serve(model: "PreTrainedModel") -> None:
    from rlcore.rollout.local_fused import fuse_attention

    fuse_attention(model, neighbours=True)
