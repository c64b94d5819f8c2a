"""A tiny mixture of experts of Megatron's own pieces: no published model, so that no plugin is needed.

Sigmoid routing with an expert bias, a shared expert, a dense first layer and normalised queries and keys: what
published families have around their experts.
"""

from collections.abc import Mapping
from typing import Any

from rlcore.bridge.table import Map, WeightBridge
from rlcore.bridge.transforms import Columns, Gated, PackedQKV, PaddedVocabulary
from rlcore.models.spec import LayerInfo, ModelSpec

MOE: Mapping[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 64,
    "layers": 4,
    "heads": 4,
    "groups": 2,
    "head_dim": 16,
    "ffn": 128,
    "experts": 8,
    "experts_per_token": 2,
    "expert_ffn": 32,
    "shared_ffn": 48,
}


def moe_spec(sizes: Mapping[str, Any]) -> ModelSpec:
    """Describe the model; layers weigh nothing, for no one plans it."""
    from rlcore.models.layers import decoder_block

    kinds = ["dense"] + ["moe"] * (sizes["layers"] - 1)
    return ModelSpec(
        model_type="moe",
        hf_config=sizes,
        hidden_size=sizes["hidden_size"],
        vocab_size=sizes["vocab_size"],
        layers=tuple(LayerInfo(kind=kind, parameters=0, flops=float) for kind in kinds),
        transformer_config={
            "num_attention_heads": sizes["heads"],
            "num_query_groups": sizes["groups"],
            "kv_channels": sizes["head_dim"],
            "ffn_hidden_size": sizes["ffn"],
            "normalization": "RMSNorm",
            "gated_linear_unit": True,
            "add_bias_linear": False,
            "qk_layernorm": True,
            "num_moe_experts": sizes["experts"],
            "moe_layer_freq": [int(kind == "moe") for kind in kinds],
            "moe_ffn_hidden_size": sizes["expert_ffn"],
            "moe_shared_expert_intermediate_size": sizes["shared_ffn"],
            "moe_router_topk": sizes["experts_per_token"],
            "moe_router_score_function": "sigmoid",
            "moe_router_enable_expert_bias": True,
            "moe_router_load_balancing_type": "none",
            "moe_router_topk_scaling_factor": 1.5,
            "moe_router_dtype": "fp32",
        },
        model_args={"max_sequence_length": 512, "position_embedding_type": "rope"},
        layer_specs=decoder_block,
    )


def moe_bridge(spec: ModelSpec) -> WeightBridge:
    """Megatron's own names on both sides, but for those that it packs."""
    sizes = spec.hf_config
    layers = {"layer": range(sizes["layers"])}
    dense, moe = {"layer": [0]}, {"layer": range(1, sizes["layers"])}
    experts = {**moe, "expert": range(sizes["experts"])}
    attention, mlp = "decoder.layers.{layer}.self_attention.", "decoder.layers.{layer}.mlp."
    vocabulary = PaddedVocabulary(sizes["vocab_size"])
    qkv = PackedQKV(sizes["heads"], sizes["groups"], sizes["head_dim"])
    return WeightBridge(
        (
            Map("embedding", "embedding.word_embeddings.weight", vocabulary),
            Map("output", "output_layer.weight", vocabulary),
            Map("final_norm", "decoder.final_layernorm.weight"),
            Map(
                tuple(f"layers.{{layer}}.{x}" for x in "qkv"), f"{attention}linear_qkv.weight", qkv, over=layers
            ),
            Map("layers.{layer}.o", f"{attention}linear_proj.weight", Columns(), over=layers),
            *(
                Map(f"layers.{{layer}}.{name}", f"{attention}{parameter}", over=layers)
                for name, parameter in {
                    "norm": "linear_qkv.layer_norm_weight",
                    "q_norm": "q_layernorm.weight",
                    "k_norm": "k_layernorm.weight",
                }.items()
            ),
            *_mlp("layers.{layer}.", mlp, "weight", dense),
            Map("layers.{layer}.mlp_norm", f"{mlp}linear_fc1.layer_norm_weight", over=dense),
            Map("layers.{layer}.moe_norm", "decoder.layers.{layer}.pre_mlp_layernorm.weight", over=moe),
            Map("layers.{layer}.router", f"{mlp}router.weight", over=moe),
            Map("layers.{layer}.expert_bias", f"{mlp}router.expert_bias", over=moe),
            *_mlp("layers.{layer}.shared.", f"{mlp}shared_experts.", "weight", moe),
            *_mlp("layers.{layer}.experts.{expert}.", f"{mlp}experts.", "weight{expert}", experts),
        )
    )


def _mlp(source: str, target: str, weight: str, over: Mapping[str, Any]) -> tuple[Map, Map]:
    return (
        Map((f"{source}gate", f"{source}up"), f"{target}linear_fc1.{weight}", Gated(), over=over),
        Map(f"{source}down", f"{target}linear_fc2.{weight}", Columns(), over=over),
    )
