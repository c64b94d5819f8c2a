"""Which weights differ between TP ranks: the gradient's norm counts these on every rank, others on one."""

from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from torch import nn

_SPLIT_AXES = {VocabParallelEmbedding: 0, ColumnParallelLinear: 0, RowParallelLinear: 1}


def mark_split_weights(stage: nn.Module) -> None:
    """Set `tensor_model_parallel` where it is missing or wrong.

    Megatron marks its own layers only where it also initialises them. Of TransformerEngine's, replicated
    weights may be marked as if they were split (ROCm/TransformerEngine#715), and those of experts, which differ
    between TP ranks whether split or not, as if they were replicated (NVIDIA/Megatron-LM#5916).
    """
    replicated = gpt_layer_specs.TESpecProvider().linear()
    for module in stage.modules():
        if type(module) is replicated:
            _mark_all(module, False)
        elif hasattr(module, "num_gemms"):
            _mark_all(module, True)
        else:
            _mark_as_split(module)


def _mark_all(module: nn.Module, differ: bool) -> None:
    for weight in module.parameters(recurse=False):
        weight.tensor_model_parallel = differ  # type: ignore[attr-defined]


def _mark_as_split(module: nn.Module) -> None:
    weight = getattr(module, "weight", None)
    for kind, axis in _SPLIT_AXES.items():
        if isinstance(module, kind) and weight is not None and not hasattr(weight, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(weight, True, axis, 1)
