"""Which tensors of a GLM-4.5, 4.6 or 4.7 checkpoint make which Megatron parameter."""

from typing import TYPE_CHECKING

from rlcore_glm45.spec import Shape

if TYPE_CHECKING:
    from rlcore.bridge.table import Map, Over, WeightBridge
    from rlcore.models.spec import ModelSpec


def glm45_bridge(spec: "ModelSpec") -> "WeightBridge":
    """Make the table. `post_attention_layernorm` is the norm before MLP or experts."""
    from rlcore.bridge.rows import gated_mlp, mtp_layers
    from rlcore.bridge.table import Derived, Ignore, Map, WeightBridge
    from rlcore.bridge.transforms import PaddedVocabulary

    shape = Shape.of(spec.hf_config)
    dense = {"layer": range(shape.dense_layers)}
    moe = {"layer": range(shape.dense_layers, shape.layers)}
    hf, megatron = "model.layers.{layer}.", "decoder.layers.{layer}."
    mlp_norm = f"{hf}post_attention_layernorm.weight"
    embedding = "model.embed_tokens.weight"
    output = embedding if spec.tied_embeddings else "lm_head.weight"
    vocabulary = PaddedVocabulary(shape.vocab)

    def mtp_layer(source: str, target: str) -> "list[Map]":
        return [*_attention(source, target, shape, {}), *_experts(source, target, shape, {})]

    return WeightBridge(
        (
            Map(embedding, "embedding.word_embeddings.weight", vocabulary),
            *_attention(hf, megatron, shape, {"layer": range(shape.layers)}),
            Map(mlp_norm, f"{megatron}mlp.linear_fc1.layer_norm_weight", over=dense),
            *gated_mlp(f"{hf}mlp.", f"{megatron}mlp.", dense),
            *_experts(hf, megatron, shape, moe),
            Map("model.norm.weight", "decoder.final_layernorm.weight"),
            Derived("lm_head.weight", embedding)
            if spec.tied_embeddings
            else Map(output, "output_layer.weight", vocabulary),
            *mtp_layers(range(shape.layers, shape.layers + shape.mtp_layers), mtp_layer, output=output),
            Ignore("*.rotary_emb.inv_freq", "computed from rope_theta"),
        )
    )


def _attention(hf: str, megatron: str, shape: Shape, over: "Over") -> "list[Map]":
    """Attention of a layer, with the norm before it, and those of queries and keys where there are any."""
    from rlcore.bridge.rows import packed_qkv
    from rlcore.bridge.table import Map
    from rlcore.bridge.transforms import Columns, PackedQKV

    source, target = f"{hf}self_attn.", f"{megatron}self_attention."
    attention = shape.attention
    qkv = PackedQKV(attention.heads, attention.groups, attention.head_dim)
    return [
        Map(f"{hf}input_layernorm.weight", f"{target}linear_qkv.layer_norm_weight", over=over),
        *packed_qkv(source, target, qkv, over),
        *(
            Map(f"{source}{x}_norm.weight", f"{target}{x}_layernorm.weight", over=over, optional=True)
            for x in "qk"
        ),
        Map(f"{source}o_proj.weight", f"{target}linear_proj.weight", Columns(), over),
    ]


def _experts(hf: str, megatron: str, shape: Shape, over: "Over") -> "list[Map]":
    from rlcore.bridge.rows import mixture_of_experts
    from rlcore.bridge.table import Map

    return [
        Map(f"{hf}post_attention_layernorm.weight", f"{megatron}pre_mlp_layernorm.weight", over=over),
        *mixture_of_experts(f"{hf}mlp.", f"{megatron}mlp.", over, experts=shape.experts.count),
    ]
