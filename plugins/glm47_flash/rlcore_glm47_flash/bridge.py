"""Which tensors of a GLM-4.7-Flash checkpoint make which Megatron parameter."""

from typing import TYPE_CHECKING

from rlcore.models.experts import DENSE, MOE
from rlcore_glm47_flash.spec import Shape

if TYPE_CHECKING:
    from rlcore.bridge.table import WeightBridge
    from rlcore.models.spec import ModelSpec


def flash_bridge(spec: "ModelSpec") -> "WeightBridge":
    """Make the table. Layers that predict further tokens pass through, with the tables that they repeat."""
    from rlcore.bridge.rows import gated_mlp, latent_attention, mixture_of_experts
    from rlcore.bridge.table import Derived, Ignore, Map, PassThrough, WeightBridge
    from rlcore.bridge.transforms import PaddedVocabulary

    shape = Shape.of(spec.hf_config)
    count = len(shape.kinds)
    over = {"layer": range(count)}
    dense, moe = ({"layer": shape.layers(kind)} for kind in (DENSE, MOE))
    hf, megatron = "model.layers.{layer}.", "decoder.layers.{layer}."
    vocabulary = PaddedVocabulary(shape.vocab)
    mlp_norm = f"{hf}post_attention_layernorm.weight"
    return WeightBridge(
        (
            Map("model.embed_tokens.weight", "embedding.word_embeddings.weight", vocabulary),
            Map(f"{hf}input_layernorm.weight", f"{megatron}input_layernorm.weight", over=over),
            *latent_attention(f"{hf}self_attn.", f"{megatron}self_attention.", over),
            Map(mlp_norm, f"{megatron}mlp.linear_fc1.layer_norm_weight", over=dense),
            *gated_mlp(f"{hf}mlp.", f"{megatron}mlp.", dense),
            Map(mlp_norm, f"{megatron}pre_mlp_layernorm.weight", over=moe),
            *mixture_of_experts(f"{hf}mlp.", f"{megatron}mlp.", moe, experts=shape.experts.count),
            Map("model.norm.weight", "decoder.final_layernorm.weight"),
            Derived("lm_head.weight", "model.embed_tokens.weight")
            if spec.tied_embeddings
            else Map("lm_head.weight", "output_layer.weight", vocabulary),
            *(PassThrough(f"model.layers.{count + draft}.*") for draft in range(shape.draft_layers)),
            Ignore("*.rotary_emb.inv_freq", "computed from rope_theta"),
        )
    )
