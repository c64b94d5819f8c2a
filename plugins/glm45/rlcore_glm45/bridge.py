"""Which tensors of a GLM-4.5, 4.6 or 4.7 checkpoint make which Megatron parameter."""

from typing import TYPE_CHECKING

from rlcore_glm45.spec import Shape

if TYPE_CHECKING:
    from rlcore.bridge.table import WeightBridge
    from rlcore.models.spec import ModelSpec


def glm45_bridge(spec: "ModelSpec") -> "WeightBridge":
    """Make the table. Draft layers pass through, the embeddings and heads that they repeat among them."""
    from rlcore.bridge.rows import gated_mlp, mixture_of_experts, packed_qkv
    from rlcore.bridge.table import Derived, Ignore, Map, PassThrough, WeightBridge
    from rlcore.bridge.transforms import Columns, PackedQKV, PaddedVocabulary

    shape = Shape.of(spec.hf_config)
    over = {"layer": range(shape.layers)}
    dense = {"layer": range(shape.dense_layers)}
    moe = {"layer": range(shape.dense_layers, shape.layers)}
    hf, megatron = "model.layers.{layer}.", "decoder.layers.{layer}."
    attention, before_mlp = f"{megatron}self_attention.", f"{hf}post_attention_layernorm.weight"
    qkv = PackedQKV(shape.heads, shape.groups, shape.head_dim)
    vocabulary = PaddedVocabulary(shape.vocab)
    return WeightBridge(
        (
            Map("model.embed_tokens.weight", "embedding.word_embeddings.weight", vocabulary),
            Map(f"{hf}input_layernorm.weight", f"{attention}linear_qkv.layer_norm_weight", over=over),
            *packed_qkv(f"{hf}self_attn.", attention, qkv, over),
            *(
                Map(
                    f"{hf}self_attn.{x}_norm.weight",
                    f"{attention}{x}_layernorm.weight",
                    over=over,
                    optional=True,
                )
                for x in "qk"
            ),
            Map(f"{hf}self_attn.o_proj.weight", f"{attention}linear_proj.weight", Columns(), over),
            Map(before_mlp, f"{megatron}mlp.linear_fc1.layer_norm_weight", over=dense),
            *gated_mlp(f"{hf}mlp.", f"{megatron}mlp.", dense),
            Map(before_mlp, f"{megatron}pre_mlp_layernorm.weight", over=moe),
            *mixture_of_experts(f"{hf}mlp.", f"{megatron}mlp.", moe, experts=shape.experts.count),
            Map("model.norm.weight", "decoder.final_layernorm.weight"),
            Derived("lm_head.weight", "model.embed_tokens.weight")
            if spec.tied_embeddings
            else Map("lm_head.weight", "output_layer.weight", vocabulary),
            *(PassThrough(f"model.layers.{shape.layers + draft}.*") for draft in range(shape.draft_layers)),
            Ignore("*.rotary_emb.inv_freq", "computed from rope_theta"),
        )
    )
