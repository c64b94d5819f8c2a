"""Which tensors of a GLM-5 or GLM-5.2 checkpoint make which Megatron parameter.

Layers that share the indices of an earlier one have no indexer, here and there; the MTP layer has its own.
"""

from typing import TYPE_CHECKING

from rlcore.models.experts import DENSE, MOE
from rlcore_glm52_dsa.spec import Shape

if TYPE_CHECKING:
    from rlcore.bridge.table import Map, Over, WeightBridge
    from rlcore.models.spec import ModelSpec

_INDEXER = {
    "wq_b.weight": "linear_wq_b.weight",
    "wk.weight": "linear_wk.weight",
    "k_norm.weight": "k_norm.weight",
    "k_norm.bias": "k_norm.bias",
    "weights_proj.weight": "linear_weights_proj.weight",
}


def dsa_bridge(spec: "ModelSpec") -> "WeightBridge":
    """Make the table. `post_attention_layernorm` is the norm before MLP or experts."""
    from rlcore.bridge.rows import gated_mlp, mtp_layers
    from rlcore.bridge.table import Derived, Ignore, Map, WeightBridge
    from rlcore.bridge.transforms import PaddedVocabulary

    shape = Shape.of(spec.hf_config)
    count = len(shape.kinds)
    full = {"layer": [layer for layer in range(count) if shape.full[layer]]}
    dense, moe = ({"layer": shape.layers(kind)} for kind in (DENSE, MOE))
    hf, megatron = "model.layers.{layer}.", "decoder.layers.{layer}."
    embedding = "model.embed_tokens.weight"
    output = embedding if spec.tied_embeddings else "lm_head.weight"
    vocabulary = PaddedVocabulary(shape.vocab)

    def mtp_layer(source: str, target: str) -> "list[Map]":
        attention = _attention(source, target, {})
        return [*attention, *_indexer(source, target, {}), *_experts(source, target, shape, {})]

    return WeightBridge(
        (
            Map(embedding, "embedding.word_embeddings.weight", vocabulary),
            *_attention(hf, megatron, {"layer": range(count)}),
            *_indexer(hf, megatron, full),
            Map(
                f"{hf}post_attention_layernorm.weight",
                f"{megatron}mlp.linear_fc1.layer_norm_weight",
                over=dense,
            ),
            *gated_mlp(f"{hf}mlp.", f"{megatron}mlp.", dense),
            *_experts(hf, megatron, shape, moe),
            Map("model.norm.weight", "decoder.final_layernorm.weight"),
            Derived("lm_head.weight", embedding)
            if spec.tied_embeddings
            else Map(output, "output_layer.weight", vocabulary),
            *mtp_layers(range(count, count + shape.mtp_layers), mtp_layer, output=output),
            Ignore("*.rotary_emb.inv_freq", "computed from rope_theta"),
        )
    )


def _attention(hf: str, megatron: str, over: "Over") -> "list[Map]":
    """Attention of a layer, with the norm before it."""
    from rlcore.bridge.rows import latent_attention
    from rlcore.bridge.table import Map

    return [
        Map(f"{hf}input_layernorm.weight", f"{megatron}input_layernorm.weight", over=over),
        *latent_attention(f"{hf}self_attn.", f"{megatron}self_attention.", over, fused_norms=False),
    ]


def _indexer(hf: str, megatron: str, over: "Over") -> "list[Map]":
    """What chooses keys; every rank holds the whole."""
    from rlcore.bridge.table import Map

    source, target = f"{hf}self_attn.indexer.", f"{megatron}self_attention.indexer."
    return [Map(f"{source}{a}", f"{target}{b}", over=over) for a, b in _INDEXER.items()]


def _experts(hf: str, megatron: str, shape: Shape, over: "Over") -> "list[Map]":
    from rlcore.bridge.rows import mixture_of_experts
    from rlcore.bridge.table import Map

    return [
        Map(f"{hf}post_attention_layernorm.weight", f"{megatron}pre_mlp_layernorm.weight", over=over),
        *mixture_of_experts(f"{hf}mlp.", f"{megatron}mlp.", over, experts=shape.experts.count),
    ]
