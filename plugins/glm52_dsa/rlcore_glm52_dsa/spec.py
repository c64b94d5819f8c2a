"""GLM-5's architecture, read from the config.json of its checkpoints.

Latent attention to the keys that an indexer chose, in this layer or in an earlier one; dense layers, then
experts. Facts: the published config.json, transformers' modeling_glm_moe_dsa, DeepSeek-V3.2's report.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rlcore.errors import fail, raise_if_any
from rlcore.models.arithmetic import gated_mlp_parameters, linear_flops
from rlcore.models.experts import DENSE, MOE, Experts
from rlcore.models.hf_config import number_problems
from rlcore.models.latent import LatentAttention, set_latent_epsilon
from rlcore.models.spec import LayerInfo, ModelSpec, mtp_layer_around
from rlcore_glm52_dsa.indexer_sizes import IndexerSizes
from rlcore_glm52_dsa.options import DsaOptions
from rlcore_glm52_dsa.schedule import full_layers

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig
    from transformers import PreTrainedModel

_SIZES = ("hidden_size", "intermediate_size", "max_position_embeddings", "num_hidden_layers", "vocab_size")
_KINDS = {"dense": DENSE, "sparse": MOE}


@dataclass(frozen=True)
class Shape:
    """The sizes that spec and bridge share.

    `kinds` says what follows attention in each layer, `full` which of them have an indexer. `mtp_layers` follow
    the others and predict further tokens; each has experts and an indexer.
    """

    hidden: int
    intermediate: int
    vocab: int
    kinds: tuple[str, ...]
    full: tuple[bool, ...]
    mtp_layers: int
    attention: LatentAttention
    experts: Experts
    indexer: IndexerSizes

    @classmethod
    def of(cls, hf_config: Mapping[str, Any]) -> "Shape":
        """Read the sizes; raises RlcoreError for every key that is absent or contradicts another."""
        raise_if_any(number_problems(hf_config, _SIZES, ["rms_norm_eps"]))
        return cls(
            hidden=hf_config["hidden_size"],
            intermediate=hf_config["intermediate_size"],
            vocab=hf_config["vocab_size"],
            kinds=_kinds(hf_config),
            full=full_layers(hf_config),
            mtp_layers=hf_config.get("num_nextn_predict_layers", 0),
            attention=LatentAttention.of(hf_config),
            experts=Experts.of(hf_config),
            indexer=IndexerSizes.of(hf_config),
        )

    def layers(self, kind: str) -> list[int]:
        """Indices of the layers of a kind."""
        return [index for index, each in enumerate(self.kinds) if each == kind]

    def layer(self, kind: str, full: bool) -> LayerInfo:
        """Describe a layer: attention, two norms, an MLP or experts, and an indexer if it is `full`."""
        if kind == DENSE:
            held = active = gated_mlp_parameters(self.hidden, self.intermediate)
        else:
            held, active = self.experts.parameters(self.hidden), self.experts.active_parameters(self.hidden)
        held += self.indexer.parameters(self.attention) if full else 0

        def flops(length: int) -> float:
            choice = self.indexer.flops(length, self.attention) if full else 0.0
            return choice + self._attention_flops(length) + linear_flops(length, active)

        return LayerInfo(
            kind=kind if full else f"{kind} shared",
            parameters=self.attention.parameters + 2 * self.hidden + held,
            flops=flops,
            may_start_stage=full,
        )

    def _attention_flops(self, length: int) -> float:
        """Attention to `topk` latents at most, by queries and into values that are brought to their width.

        That costs each token what making its own keys and values would.
        """
        topk, attention = min(length, self.indexer.topk), self.attention
        pairs = topk * (topk + 1) / 2 + (length - topk) * topk
        widths = 2 * attention.key_value_latent + attention.rotated
        return linear_flops(length, attention.matrices) + 2.0 * pairs * attention.heads * widths


def dsa_spec(hf_config: Mapping[str, Any], options: DsaOptions | None = None) -> ModelSpec:
    """Describe a GLM-5 or GLM-5.2 checkpoint by its config.json.

    `rms_norm_eps` is that of all norms but the indexers', the latents' included, as where the model is served:
    transformers' implementation, which has another one there, is mended.
    """
    shape, options = Shape.of(hf_config), options or DsaOptions()
    layers = {(kind, full): shape.layer(kind, full) for kind in (DENSE, MOE) for full in (False, True)}
    return ModelSpec(
        model_type="glm_moe_dsa",
        hf_config=hf_config,
        hidden_size=shape.hidden,
        vocab_size=shape.vocab,
        layers=tuple(layers[each] for each in zip(shape.kinds, shape.full, strict=True)),
        mtp_layers=(mtp_layer_around(layers[MOE, True], shape.hidden),) * shape.mtp_layers,
        transformer_config={
            **shape.attention.transformer_config(),
            "ffn_hidden_size": shape.intermediate,
            "normalization": "RMSNorm",
            "layernorm_epsilon": hf_config["rms_norm_eps"],
            "gated_linear_unit": True,
            "activation_func": hf_config.get("hidden_act", "silu"),
            "add_bias_linear": False,
            **shape.experts.transformer_config(shape.kinds),
        },
        model_args={
            "max_sequence_length": hf_config["max_position_embeddings"],
            "position_embedding_type": "rope",
        },
        layer_specs=partial(_layer_specs, shape, options),
        mtp_layer_spec=partial(_mtp_layer_spec, shape, options),
        cp_layout="contiguous",
        latent_attention=True,
        tied_embeddings=bool(hf_config.get("tie_word_embeddings", False)),
        mend_transformers=partial(set_latent_epsilon, eps=hf_config["rms_norm_eps"]),
        serve_transformers=_serve,
        options=DsaOptions,
        with_options=partial(dsa_spec, hf_config),
    )


def _kinds(hf_config: Mapping[str, Any]) -> tuple[str, ...]:
    """What follows attention in each layer: as named, else so many dense layers, by default three."""
    layers = hf_config["num_hidden_layers"]
    dense = min(hf_config.get("first_k_dense_replace", 3), layers)
    types = hf_config.get("mlp_layer_types") or ["dense"] * dense + ["sparse"] * (layers - dense)
    if len(types) != layers or not set(types) <= _KINDS.keys():
        raise fail("config.json", f"mlp_layer_types must say dense or sparse for each of {layers} layers")
    return tuple(_KINDS[each] for each in types)


def _layer_specs(
    shape: Shape, options: DsaOptions, config: "TransformerConfig", vp_stage: int | None
) -> "TransformerBlockSubmodules":
    from rlcore.models.layers import decoder_block

    block = decoder_block(config, vp_stage)
    for layer in block.layer_specs:
        layer.submodules.self_attention = _attention_spec(shape, options)
    return block


def _mtp_layer_spec(shape: Shape, options: DsaOptions, config: "TransformerConfig") -> "ModuleSpec":
    from rlcore.models.layers import last_decoder_layer

    layer = last_decoder_layer(config)
    layer.submodules.self_attention = _attention_spec(shape, options)
    return layer


def _serve(model: "PreTrainedModel") -> None:
    from rlcore_glm52_dsa.engine import serve_in_slots

    serve_in_slots(model)


def _attention_spec(shape: Shape, options: DsaOptions) -> "ModuleSpec":
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.spec_utils import ModuleSpec

    from rlcore_glm52_dsa.attention import SparseLatentAttention

    full = shape.full + (True,) * shape.mtp_layers
    return ModuleSpec(
        SparseLatentAttention,
        # Megatron's MTP layers ask for the mask before they build one.
        {"attn_mask_type": AttnMaskType.causal, "full": full, "sizes": shape.indexer, "options": options},
    )
