"""A tiny mixture of experts of Megatron's own pieces: no published model, so that no plugin is needed.

Sigmoid routing with an expert bias, a shared expert, a dense first layer and normalised queries and keys: what
published families have around their experts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from rlcore.bridge.table import Map, Over, WeightBridge
from rlcore.bridge.transforms import Columns, Gated, PackedQKV, PaddedVocabulary, Rows
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
    "mtp_layers": 1,
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
        mtp_layers=(LayerInfo(kind="moe", parameters=0, flops=float),) * sizes["mtp_layers"],
    )


def moe_bridge(spec: ModelSpec) -> WeightBridge:
    """Megatron's own names on both sides, but for those that it packs."""
    sizes = spec.hf_config
    dense, moe = {"layer": [0]}, {"layer": range(1, sizes["layers"])}
    vocabulary = PaddedVocabulary(sizes["vocab_size"])
    source, target = "layers.{layer}.", "decoder.layers.{layer}."
    return WeightBridge(
        (
            Map("embedding", "embedding.word_embeddings.weight", vocabulary),
            Map("output", "output_layer.weight", vocabulary),
            Map("final_norm", "decoder.final_layernorm.weight"),
            *_attention(source, target, sizes, {"layer": range(sizes["layers"])}),
            *_mlp(source, f"{target}mlp.", "weight", dense),
            Map(f"{source}mlp_norm", f"{target}mlp.linear_fc1.layer_norm_weight", over=dense),
            *_experts(source, target, sizes, moe),
            *(row for layer in range(sizes["mtp_layers"]) for row in _mtp(layer, sizes)),
        )
    )


def _attention(source: str, target: str, sizes: Mapping[str, Any], over: Over) -> Iterator[Map]:
    target += "self_attention."
    qkv = PackedQKV(sizes["heads"], sizes["groups"], sizes["head_dim"])
    yield Map(tuple(f"{source}{x}" for x in "qkv"), f"{target}linear_qkv.weight", qkv, over)
    yield Map(f"{source}o", f"{target}linear_proj.weight", Columns(), over)
    yield Map(f"{source}norm", f"{target}linear_qkv.layer_norm_weight", over=over)
    yield Map(f"{source}q_norm", f"{target}q_layernorm.weight", over=over)
    yield Map(f"{source}k_norm", f"{target}k_layernorm.weight", over=over)


def _experts(source: str, target: str, sizes: Mapping[str, Any], over: Over) -> Iterator[Map]:
    each = {**over, "expert": range(sizes["experts"])}
    yield Map(f"{source}moe_norm", f"{target}pre_mlp_layernorm.weight", over=over)
    yield Map(f"{source}router", f"{target}mlp.router.weight", over=over)
    yield Map(f"{source}expert_bias", f"{target}mlp.router.expert_bias", over=over)
    yield from _mlp(f"{source}shared.", f"{target}mlp.shared_experts.", "weight", over)
    yield from _mlp(f"{source}experts.{{expert}}.", f"{target}mlp.experts.", "weight{expert}", each)


def _mlp(source: str, target: str, weight: str, over: Over) -> Iterator[Map]:
    yield Map((f"{source}gate", f"{source}up"), f"{target}linear_fc1.{weight}", Gated(), over)
    yield Map(f"{source}down", f"{target}linear_fc2.{weight}", Columns(), over)


def _mtp(layer: int, sizes: Mapping[str, Any]) -> Iterator[Map]:
    source, target = f"mtp.{layer}.", f"mtp.layers.{layer}."
    rows = [
        *(Map(f"{source}{name}norm", f"{target}{name}norm.weight") for name in "eh"),
        Map(f"{source}proj", f"{target}eh_proj.weight", Rows()),
        Map(f"{source}final_norm", f"{target}final_layernorm.weight"),
        *_attention(source, f"{target}transformer_layer.", sizes, {}),
        *_experts(source, f"{target}transformer_layer.", sizes, {}),
    ]
    yield from (replace(row, kept=True) for row in rows)
