"""GLM-4.7-Flash's architecture, read from the config.json of its checkpoints.

Latent attention whose rotated part comes in interleaved pairs, a dense first layer, and then experts. Facts:
the published config.json, transformers' modeling_glm4_moe_lite, and how SGLang and vLLM serve the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rlcore.errors import fail, raise_if_any
from rlcore.models.arithmetic import linear_flops
from rlcore.models.experts import DENSE, MOE, Experts
from rlcore.models.hf_config import block_fields, number_problems
from rlcore.models.latent import LatentAttention, set_latent_epsilon
from rlcore.models.spec import LayerInfo, ModelSpec, mtp_layer_around

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig

_SIZES = ("hidden_size", "intermediate_size", "max_position_embeddings", "num_hidden_layers", "vocab_size")
_KINDS = {"dense": DENSE, "sparse": MOE}


@dataclass(frozen=True)
class Shape:
    """The sizes that spec and bridge share. `kinds` says what follows attention in each layer.

    `mtp_layers` follow the others and predict further tokens.
    """

    hidden: int
    intermediate: int
    vocab: int
    kinds: tuple[str, ...]
    mtp_layers: int
    attention: LatentAttention
    experts: Experts

    @classmethod
    def of(cls, hf_config: Mapping[str, Any]) -> "Shape":
        """Read the sizes; raises RlcoreError for every key that is absent or contradicts another."""
        raise_if_any(number_problems(hf_config, _SIZES, ["rms_norm_eps"]))
        return cls(
            hidden=hf_config["hidden_size"],
            intermediate=hf_config["intermediate_size"],
            vocab=hf_config["vocab_size"],
            kinds=_kinds(hf_config),
            mtp_layers=hf_config.get("num_nextn_predict_layers", 0),
            attention=LatentAttention.of(hf_config),
            experts=Experts.of(hf_config),
        )

    def layers(self, kind: str) -> list[int]:
        """Indices of the layers of a kind."""
        return [index for index, each in enumerate(self.kinds) if each == kind]

    def layer(self, kind: str) -> LayerInfo:
        """Describe a layer: attention, two norms, and an MLP or experts."""
        held, active = self.experts.layer_parameters(kind, self.hidden, self.intermediate)

        def flops(length: int) -> float:
            return self.attention.flops(length) + linear_flops(length, active)

        return LayerInfo(kind=kind, parameters=self.attention.parameters + 2 * self.hidden + held, flops=flops)


def flash_spec(hf_config: Mapping[str, Any]) -> ModelSpec:
    """Describe a GLM-4.7-Flash checkpoint by its config.json.

    `rms_norm_eps` is that of all norms, the latents' included, as where the model is served: transformers'
    implementation, which has another one there, is mended.
    """
    shape = Shape.of(hf_config)
    layers = {kind: shape.layer(kind) for kind in (DENSE, MOE)}
    return ModelSpec(
        model_type="glm4_moe_lite",
        hf_config=hf_config,
        hidden_size=shape.hidden,
        vocab_size=shape.vocab,
        layers=tuple(layers[kind] for kind in shape.kinds),
        mtp_layers=(mtp_layer_around(layers[MOE], shape.hidden),) * shape.mtp_layers,
        transformer_config={
            **shape.attention.transformer_config(),
            **block_fields(hf_config),
            **shape.experts.transformer_config(shape.kinds),
        },
        model_args={
            "max_sequence_length": hf_config["max_position_embeddings"],
            "position_embedding_type": "rope",
        },
        layer_specs=_layer_specs,
        latent_attention=True,
        tied_embeddings=bool(hf_config.get("tie_word_embeddings", False)),
        mend_transformers=partial(set_latent_epsilon, eps=hf_config["rms_norm_eps"]),
    )


def _kinds(hf_config: Mapping[str, Any]) -> tuple[str, ...]:
    """What follows attention in each layer, by transformers' key, else by that of the published file.

    transformers never reads `first_k_dense_replace` and takes one dense layer where its own key is absent.
    """
    layers = hf_config["num_hidden_layers"]
    dense = min(hf_config.get("first_k_dense_replace", 1), layers)
    types = hf_config.get("mlp_layer_types") or ["dense"] * dense + ["sparse"] * (layers - dense)
    if len(types) != layers or not set(types) <= _KINDS.keys():
        raise fail("config.json", f"mlp_layer_types must say dense or sparse for each of {layers} layers")
    if not hf_config.get("mlp_layer_types") and dense != 1:
        message = f"first_k_dense_replace {dense} alone is read in two ways: transformers takes 1 all the same"
        raise fail("config.json", message, f"model.overrides: {{mlp_layer_types: {types}}}")
    return tuple(_KINDS[each] for each in types)


def _layer_specs(config: "TransformerConfig", vp_stage: int | None) -> "TransformerBlockSubmodules":
    from rlcore.models.layers import decoder_block

    return decoder_block(config, vp_stage)
