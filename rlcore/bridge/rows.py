"""Rows that the tables of many families share, so that a plugin writes down only what is its own.

`hf` and `megatron` are the names of a module on both sides, with a dot at the end, and templates as in a Map.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from rlcore.bridge.table import Derived, Map, Over
from rlcore.bridge.transforms import Columns, Gated, PackedQKV, Rows


def packed_qkv(hf: str, megatron: str, qkv: PackedQKV, over: Over) -> tuple[Map, Map]:
    """Projections of queries, keys and values, whose biases both sides may lack."""
    return tuple(
        Map(
            tuple(f"{hf}{x}_proj.{part}" for x in "qkv"),
            f"{megatron}linear_qkv.{part}",
            qkv,
            over,
            optional=part == "bias",
        )
        for part in ("weight", "bias")
    )


def gated_mlp(hf: str, megatron: str, over: Over, *, weight: str = "weight") -> tuple[Map, Map]:
    """Gate, up and down projections; `weight` is Megatron's name of both its matrices."""
    return (
        Map((f"{hf}gate_proj.weight", f"{hf}up_proj.weight"), f"{megatron}linear_fc1.{weight}", Gated(), over),
        Map(f"{hf}down_proj.weight", f"{megatron}linear_fc2.{weight}", Columns(), over),
    )


def mixture_of_experts(hf: str, megatron: str, over: Over, *, experts: int) -> tuple[Map, ...]:
    """Router, its bias for choosing, the experts, and the one that all tokens take."""
    return (
        Map(f"{hf}gate.weight", f"{megatron}router.weight", over=over),
        Map(f"{hf}gate.e_score_correction_bias", f"{megatron}router.expert_bias", over=over),
        *gated_mlp(f"{hf}shared_experts.", f"{megatron}shared_experts.", over),
        *gated_mlp(
            f"{hf}experts.{{expert}}.",
            f"{megatron}experts.",
            {**over, "expert": range(experts)},
            weight="weight{expert}",
        ),
    )


def latent_attention(hf: str, megatron: str, over: Over, *, fused_norms: bool = True) -> tuple[Map, ...]:
    """Projections down to the latents, whole on every rank; their norms; and up from them, split by heads.

    Norms belong to the projections that follow them unless `fused_norms` is off: then they are modules.
    """
    down = {"q_a_proj": "linear_q_down_proj", "kv_a_proj_with_mqa": "linear_kv_down_proj"}
    norm = "linear_{}_up_proj.layer_norm_weight" if fused_norms else "{}_layernorm.weight"
    return (
        *(Map(f"{hf}{a}.weight", f"{megatron}{b}.weight", over=over) for a, b in down.items()),
        *(Map(f"{hf}{x}_a_layernorm.weight", megatron + norm.format(x), over=over) for x in ("q", "kv")),
        *(
            Map(f"{hf}{x}_b_proj.weight", f"{megatron}linear_{x}_up_proj.weight", Rows(), over)
            for x in ("q", "kv")
        ),
        Map(f"{hf}o_proj.weight", f"{megatron}linear_proj.weight", Columns(), over),
    )


def mtp_layers(
    numbers: Iterable[int],
    transformer_layer: Callable[[str, str], Iterable[Map]],
    *,
    embedding: str = "model.embed_tokens.weight",
    output: str = "lm_head.weight",
) -> Iterator[Map | Derived]:
    """Multi-token prediction layers, counted on from the model's others; a model may be built without them.

    `transformer_layer` gives the rows of what they are made around, for its `hf` and `megatron`. A checkpoint
    may repeat the model's tables in them, whose own names are `embedding` and `output`.
    """
    norms = {"enorm": "enorm", "hnorm": "hnorm", "shared_head.norm": "final_layernorm"}
    for index, number in enumerate(numbers):
        hf, megatron = f"model.layers.{number}.", f"mtp.layers.{index}."
        own = [
            *(Map(f"{hf}{a}.weight", f"{megatron}{b}.weight") for a, b in norms.items()),
            Map(f"{hf}eh_proj.weight", f"{megatron}eh_proj.weight", Rows()),
            *transformer_layer(hf, f"{megatron}transformer_layer."),
        ]
        yield from (replace(row, kept=True) for row in own)
        yield Derived(f"{hf}embed_tokens.weight", embedding)
        yield Derived(f"{hf}shared_head.head.weight", output)
