"""From a ModelSpec and a recipe's choices to Megatron's TransformerConfig; who may set which field."""

import dataclasses
from collections.abc import Iterator, Mapping
from enum import EnumMeta
from typing import Any, get_args

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from rlcore.config.native import megatron_problems
from rlcore.config.schema import Parallel, Recompute
from rlcore.errors import Problem, raise_if_any
from rlcore.layout.plan import expert_sizes
from rlcore.layout.stages import chunks_per_rank
from rlcore.models.spec import ModelSpec

# What makes packed micro-batches of unequal lengths train right; rlcore computes losses per token. Experts are
# always grouped: it decides their names in bridges and checkpoints.
_FIXED: Mapping[str, Any] = {
    "calculate_per_token_loss": True,
    "perform_initialization": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "moe_grouped_gemm": True,
}

# Defaults that a recipe's `megatron:` may change. The dispatcher counts even without experts: Megatron refuses
# a pipeline of variable lengths beside its own default. Nothing but the policy's loss moves routers unless a
# recipe asks.
_DEFAULTS: Mapping[str, Any] = {
    "moe_token_dispatcher_type": "alltoall",
    "moe_router_load_balancing_type": "none",
    "moe_router_bias_update_rate": 0.0,
    "cuda_graph_scope": [],
}


def transformer_config(
    spec: ModelSpec,
    *,
    parallel: Parallel,
    dtype: torch.dtype,
    recompute: Recompute,
    megatron_overrides: Mapping[str, Any],
    mtp_layers: int = 0,
) -> TransformerConfig:
    """Build the configuration of one rank's model, with `mtp_layers` of the model's MTP layers.

    `megatron_overrides` are fields of TransformerConfig from the recipe's `megatron:`. Raises RlcoreError
    for every one that does not exist, and for those that belong to another recipe key or to the model.
    """
    kind = MLATransformerConfig if spec.latent_attention else TransformerConfig
    problems = megatron_problems(megatron_overrides) or [
        *_architecture_problems(spec, megatron_overrides),
        *_rotation_problems(spec, parallel, megatron_overrides),
        *_tie_problems(spec, parallel, mtp_layers),
    ]
    raise_if_any(problems)
    fields = {
        **_DEFAULTS,
        **spec.transformer_config,
        "activation_func": getattr(F, spec.transformer_config.get("activation_func", "silu")),
        **_parallel_fields(parallel),
        **_dtype_fields(dtype),
        **_recompute_fields(recompute),
        "mtp_num_layers": mtp_layers or None,
        **_FIXED,
        "use_cpu_initialization": not torch.cuda.is_available(),
        **by_name(kind, megatron_overrides),
    }
    return kind(num_layers=len(spec.layers), hidden_size=spec.hidden_size, **fields)


def by_name(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a configuration of Megatron's, whose enums and dtypes are given by name.

    Megatron compares them with members and types, so that a name would count as none of them, without an error.
    """
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    return {name: _member(types.get(name), value) for name, value in values.items()}


def _member(kind: Any, value: Any) -> Any:
    if isinstance(kind, EnumMeta):
        return kind[value]
    return getattr(torch, value) if value and torch.dtype in (kind, *get_args(kind)) else value


def gathers_tokens(config: TransformerConfig) -> bool:
    """Whether ranks gather all tokens of their expert group, for which they need equally many."""
    return config.moe_token_dispatcher_type == "allgather" and config.expert_model_parallel_size > 1


def virtual_stages(parallel: Parallel) -> int | None:
    """Stages per pipeline rank, by `vpp` or the free-form layout; None for one, not to be interleaved."""
    chunks = chunks_per_rank(parallel)
    return chunks if chunks > 1 else None


def _parallel_fields(parallel: Parallel) -> dict[str, Any]:
    """Sequence parallelism comes with TP always: without it, latent attention's norms get wrong gradients.

    Interleaved stages send each direction by itself: where two ranks are each other's next and previous, a
    batch of both mixes them up, without an error if lengths are equal. They go on before a send has ended, and
    Megatron 0.16 would free an output then that is still to leave (NVIDIA/Megatron-LM#4047): they keep theirs.
    """
    interleaved = virtual_stages(parallel) is not None
    ep, etp = expert_sizes(parallel)
    return {
        "tensor_model_parallel_size": parallel.tp,
        "sequence_parallel": parallel.tp > 1,
        "pipeline_model_parallel_size": parallel.pp,
        # Messages between stages alone ask for it; without, Megatron allows more dispatchers.
        "variable_seq_lengths": parallel.pp > 1,
        "virtual_pipeline_model_parallel_size": virtual_stages(parallel),
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
        "deallocate_pipeline_outputs": not interleaved,
        "num_layers_in_first_pipeline_stage": parallel.first_stage_layers,
        "num_layers_in_last_pipeline_stage": parallel.last_stage_layers,
        "pipeline_model_parallel_layout": parallel.pipeline_layout,
        "context_parallel_size": parallel.cp,
        "expert_model_parallel_size": ep,
        "expert_tensor_parallel_size": etp,
    }


def _dtype_fields(dtype: torch.dtype) -> dict[str, Any]:
    return {"params_dtype": dtype, "pipeline_dtype": dtype, "bf16": dtype == torch.bfloat16}


def _recompute_fields(recompute: Recompute) -> dict[str, Any]:
    match recompute.granularity:
        case "none":
            return {}
        case "selective":
            return {"recompute_granularity": "selective", "recompute_modules": recompute.modules or None}
        case "full":
            return {
                "recompute_granularity": "full",
                "recompute_method": recompute.method,
                "recompute_num_layers": recompute.num_layers,
            }


def _architecture_problems(spec: ModelSpec, overrides: Mapping[str, Any]) -> Iterator[Problem]:
    """What only the model's own plugin knows to be its architecture."""
    for name in overrides:
        if name in spec.transformer_config:
            message = "is the model's architecture"
            yield Problem(f"megatron.{name}", message, "change config.json's value under model.overrides")


def _rotation_problems(spec: ModelSpec, parallel: Parallel, overrides: Mapping[str, Any]) -> Iterator[Problem]:
    """The fused rotation finds positions by itself, without an error where they are wrong.

    Where sequences are packed, Megatron 0.16 does not tell it either that pairs stand side by side.
    """
    if not overrides.get("apply_rope_fusion"):
        return
    place, remedy = "megatron.apply_rope_fusion", "leave it out"
    if parallel.cp > 1 and spec.cp_layout == "contiguous":
        message = "rotates zigzag pieces of sequences only, and this model's are contiguous under parallel.cp"
        yield Problem(place, message, remedy)
    if spec.transformer_config.get("rotary_interleaved"):
        message = "rotates pairs that stand half a width apart, and this model's stand side by side"
        yield Problem(place, message, remedy)


def _tie_problems(spec: ModelSpec, parallel: Parallel, mtp_layers: int) -> Iterator[Problem]:
    """On a last stage, what MTP layers look up is a copy that nothing trains, and a tied output would be it."""
    if spec.tied_embeddings and mtp_layers and parallel.pp > 1:
        message = "does not go with tied embeddings and a pipeline: the output layer would not learn"
        yield Problem("mtp.num_layers", message, "set it to 0, or parallel.pp to 1")
