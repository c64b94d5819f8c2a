"""Native settings that pass through to Megatron, checked by name and type without importing it.

The fields are read from the installed sources. What rlcore sets itself is refused, with the key that sets it.
"""

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from rlcore.config.fields import suggest
from rlcore.errors import Problem

_MEGATRON = {
    "model_parallel_config.py": ("ModelParallelConfig",),
    "transformer/transformer_config.py": ("TransformerConfig", "MLATransformerConfig"),
    "distributed/distributed_data_parallel_config.py": ("DistributedDataParallelConfig",),
    "optimizer/optimizer_config.py": ("OptimizerConfig",),
}
_FROM_CONFIG_JSON = "model.overrides (the checkpoint's config.json says it)"
_OWNED_MEGATRON = {
    "tensor_model_parallel_size": "parallel.tp",
    "pipeline_model_parallel_size": "parallel.pp",
    "virtual_pipeline_model_parallel_size": "parallel.vpp",
    "context_parallel_size": "parallel.cp",
    "expert_model_parallel_size": "parallel.ep",
    "expert_tensor_parallel_size": "parallel.etp",
    "sequence_parallel": "parallel.tp (above 1 it is on; without, some gradients are wrong)",
    "overlap_p2p_comm": "parallel.vpp (above 1 it is on)",
    "batch_p2p_comm": "parallel.vpp (above 1 it is off)",
    "overlap_p2p_comm_warmup_flush": "nothing: stages would wait for one another where log-probs are computed",
    "deallocate_pipeline_outputs": "parallel.vpp (above 1 it is off: outputs may still be on their way)",
    "num_layers_in_first_pipeline_stage": "parallel.first_stage_layers",
    "num_layers_in_last_pipeline_stage": "parallel.last_stage_layers",
    "pipeline_model_parallel_layout": "parallel.pipeline_layout",
    "account_for_embedding_in_pipeline_split": "parallel.first_stage_layers",
    "account_for_loss_in_pipeline_split": "parallel.last_stage_layers",
    "microbatch_group_size_per_vp_stage": "parallel.vpp (micro-batches come in multiples of pp)",
    "average_in_collective": "nothing: losses are weighted by token, so gradients are sums",
    "num_distributed_optimizer_instances": "nothing: optimizer states are spread over all of dp × cp",
    "recompute_granularity": "recompute.granularity",
    "recompute_method": "recompute.method",
    "recompute_num_layers": "recompute.num_layers",
    "recompute_modules": "recompute.modules",
    "mtp_num_layers": "mtp.num_layers",
    "mtp_loss_scaling_factor": "mtp.loss_scaling_factor",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "params_dtype": "model.dtype",
    "pipeline_dtype": "model.dtype",
    "perform_initialization": "nothing: weights come from the checkpoint",
    "calculate_per_token_loss": "algorithm.reduction",
    "variable_seq_lengths": "nothing: batches are packed, so it is on wherever Megatron reads it",
    "hidden_dropout": "nothing: it is 0, so that log-probs can be compared",
    "attention_dropout": "nothing: it is 0, so that log-probs can be compared",
    "moe_grouped_gemm": "nothing: experts are always grouped",
    "use_distributed_optimizer": "nothing: it is always on",
    "overlap_param_gather": "nothing: weights gathered late would be exported stale",
    "lr": "optimizer.lr",
    "min_lr": "optimizer.min_lr",
    "weight_decay": "optimizer.weight_decay",
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "adam_eps": "optimizer.eps",
    "clip_grad": "optimizer.clip_grad",
    "optimizer": "nothing: it is Adam",
    "optimizer_cpu_offload": "optimizer.cpu_offload",
    "overlap_cpu_optimizer_d2h_h2d": "optimizer.overlap_offload",
    "use_precision_aware_optimizer": "optimizer.precision_aware",
    "optimizer_offload_fraction": "optimizer.cpu_offload (all of it: Megatron updates the rest too early)",
    "store_param_remainders": "nothing: it is off, for checkpoints hold whole master weights",
    "loss_scale": "nothing: losses are not scaled, and Megatron would still divide gradients by it",
    "qk_clip": "nothing: steps do not clip weights of queries and keys",
    "fine_grained_activation_offloading": "recompute.granularity (it reloads before it has offloaded)",
    **dict.fromkeys(
        (
            "num_layers",
            "hidden_size",
            "ffn_hidden_size",
            "num_attention_heads",
            "num_query_groups",
            "kv_channels",
            "num_moe_experts",
            "moe_router_topk",
            "moe_ffn_hidden_size",
            "layernorm_epsilon",
            "rotary_base",
        ),
        _FROM_CONFIG_JSON,
    ),
}
# What Megatron gets wrong without an error where micro-batches are packed (NVIDIA/Megatron-LM#7213, #4816).
_NOT_FOR_PACKED = {
    ("moe_router_load_balancing_type", "seq_aux_loss"): (
        "takes a packed micro-batch for one sequence, and is then aux_loss",
        "aux_loss",
    ),
    ("moe_router_load_balancing_type", "global_aux_loss"): (
        "divides tokens of an average micro-batch by those of the current one, and they differ",
        "aux_loss",
    ),
    ("moe_flex_dispatcher_backend", "hybridep"): (
        "needs equally many tokens on every rank, and packed micro-batches differ",
        "deepep",
    ),
}
_DTYPES = ("float32", "float16", "bfloat16", "uint8")
Fields = Mapping[str, ast.expr]


def megatron_problems(settings: Mapping[str, Any]) -> list[Problem]:
    """Check `megatron:`; places are keys of the recipe. Unknown names pass where Megatron is not installed."""
    own = _problems("megatron", settings, _OWNED_MEGATRON, megatron_fields())
    return [*own, *_packing_problems(settings)]


def _packing_problems(settings: Mapping[str, Any]) -> Iterator[Problem]:
    for (name, choice), (message, instead) in _NOT_FOR_PACKED.items():
        chosen = settings.get(name)
        if choice in (chosen if isinstance(chosen, list) else [chosen]):
            yield Problem(f"megatron.{name}", f"{choice} {message}", f"use {instead}")


def _problems(
    key: str, settings: Mapping[str, Any], owned: Mapping[str, str], fields: Fields
) -> Iterator[Problem]:
    for name, value in settings.items():
        place = f"{key}.{name}"
        if name in owned:
            yield Problem(place, f"rlcore sets {name!r} itself", f"use {owned[name]}")
        elif fields and name not in fields:
            yield Problem(place, f"there is no field {name!r}", suggest_field(name, fields, owned))
        elif fields and not accepts(fields[name], value):
            yield Problem(place, f"{value!r} does not fit {name}", _fitting(fields[name]))


def _fitting(annotation: ast.expr) -> str:
    kind = ast.unparse(annotation)
    names = _DTYPES if kind == "torch.dtype" else _enums().get(kind)
    return f"one of {', '.join(names)}" if names else f"a value of type {kind}"


def suggest_field(name: str, fields: Fields, owned: Mapping[str, str]) -> str:
    """Say what an unknown field may mean; the whole list would be too long to help."""
    hint = suggest(name.replace("-", "_"), list(fields))
    if not hint.startswith("did you mean"):
        return "the exact name of a field of the native configuration"
    match = hint.split("'")[1]
    return f"use {owned[match]}" if match in owned else hint


@cache
def megatron_fields() -> Fields:
    """Fields of Megatron's model, DDP and optimizer configurations with their types; empty if not installed."""
    fields: dict[str, ast.expr] = {}
    for file, classes in _MEGATRON.items():
        fields |= _fields_in("megatron", f"core/{file}", classes)
    return fields


@cache
def _enums() -> Mapping[str, tuple[str, ...]]:
    """Names of the members of Megatron's enums."""
    return {
        kind.name: tuple(ast.unparse(line.targets[0]) for line in kind.body if isinstance(line, ast.Assign))
        for kind in _classes_in("megatron", "core/transformer/enums.py")
    }


def _fields_in(package: str, file: str, classes: tuple[str, ...]) -> dict[str, ast.expr]:
    return {
        line.target.id: line.annotation
        for kind in _classes_in(package, file)
        if kind.name in classes
        for line in kind.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }


def _classes_in(package: str, file: str) -> list[ast.ClassDef]:
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or []
    source = next((Path(folder, file) for folder in folders if Path(folder, file).is_file()), None)
    tree = ast.parse(source.read_text(encoding="utf-8") if source else "")
    return [node for node in tree.body if isinstance(node, ast.ClassDef)]


def accepts(annotation: ast.expr, value: Any) -> bool:
    """Whether a value from YAML fits a type annotation. Enums and dtypes are written by name."""
    match annotation:
        case ast.Constant(value=None):
            return value is None
        case ast.Constant(value=str() as text):
            return accepts(ast.parse(text, mode="eval").body, value)
        case ast.Name(id="bool"):
            return isinstance(value, bool)
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name(id="float"):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case ast.Name(id="list" | "List" | "tuple" | "Tuple"):
            return isinstance(value, list)
        case ast.Name(id="dict" | "Dict"):
            return isinstance(value, dict)
        case ast.Name(id="Any"):
            return True
        case ast.Name(id="Callable"):
            return False
        case ast.Name(id=name) if name in _enums():
            return value in _enums()[name]
        case ast.Attribute(attr="dtype"):
            return value in _DTYPES
        case ast.BinOp(op=ast.BitOr()):
            return accepts(annotation.left, value) or accepts(annotation.right, value)
        case ast.Subscript(value=ast.Name(id=outer)):
            return _accepts_generic(outer, annotation.slice, value)
    return isinstance(value, str)


def _accepts_generic(outer: str, inner: ast.expr, value: Any) -> bool:
    arguments = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    match outer:
        case "Optional":
            return value is None or accepts(inner, value)
        case "Union":
            return any(accepts(argument, value) for argument in arguments)
        case "Literal":
            return value in [ast.literal_eval(argument) for argument in arguments]
        case "list" | "List" | "tuple" | "Tuple":
            return isinstance(value, list) and all(any(accepts(a, item) for a in arguments) for item in value)
        case "dict" | "Dict":
            return isinstance(value, dict)
        case "Callable":
            return False
        case _:
            return accepts(arguments[0], value)
