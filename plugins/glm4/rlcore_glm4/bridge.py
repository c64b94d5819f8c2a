"""Which tensors of a GLM-4 checkpoint make which Megatron parameter."""

from typing import TYPE_CHECKING

from rlcore_glm4.spec import Shape

if TYPE_CHECKING:
    from rlcore.bridge.table import WeightBridge
    from rlcore.models.spec import ModelSpec


def glm4_bridge(spec: "ModelSpec") -> "WeightBridge":
    """Make the table. `post_attention_layernorm` is the norm before the MLP; gate and up come as one tensor."""
    from rlcore.bridge.rows import packed_qkv
    from rlcore.bridge.table import Derived, Ignore, Map, WeightBridge
    from rlcore.bridge.transforms import Columns, FusedGated, PackedQKV, PaddedVocabulary

    shape = Shape.of(spec.hf_config)
    over = {"layer": range(shape.layers)}
    hf, megatron = "model.layers.{layer}.", "decoder.layers.{layer}."
    attention = shape.attention
    qkv = PackedQKV(attention.heads, attention.groups, attention.head_dim)
    vocabulary = PaddedVocabulary(shape.vocab)
    norms = {
        "input_layernorm": "self_attention.linear_qkv.layer_norm_weight",
        "post_self_attn_layernorm": "post_self_attn_layernorm.weight",
        "post_attention_layernorm": "mlp.linear_fc1.layer_norm_weight",
        "post_mlp_layernorm": "post_mlp_layernorm.weight",
    }
    return WeightBridge(
        (
            Map("model.embed_tokens.weight", "embedding.word_embeddings.weight", vocabulary),
            *(Map(f"{hf}{a}.weight", f"{megatron}{b}", over=over) for a, b in norms.items()),
            *packed_qkv(f"{hf}self_attn.", f"{megatron}self_attention.", qkv, over),
            Map(
                f"{hf}self_attn.o_proj.weight", f"{megatron}self_attention.linear_proj.weight", Columns(), over
            ),
            Map(f"{hf}mlp.gate_up_proj.weight", f"{megatron}mlp.linear_fc1.weight", FusedGated(), over),
            Map(f"{hf}mlp.down_proj.weight", f"{megatron}mlp.linear_fc2.weight", Columns(), over),
            Map("model.norm.weight", "decoder.final_layernorm.weight"),
            Derived("lm_head.weight", "model.embed_tokens.weight")
            if spec.tied_embeddings
            else Map("lm_head.weight", "output_layer.weight", vocabulary),
            Ignore("*.rotary_emb.inv_freq", "computed from rope_theta"),
        )
    )
