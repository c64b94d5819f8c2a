"""Fills a Megatron model from a checkpoint in Hugging Face format, each rank reading only its slices."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rlcore.bridge.inventory import all_megatron_names, megatron_tensors
from rlcore.bridge.safetensors_io import SafetensorsFolder
from rlcore.bridge.table import Entry, WeightBridge
from rlcore.bridge.transforms import Shard
from rlcore.errors import Problem, raise_if_any

_READABLE = ("F64", "F32", "F16", "BF16")


def load_hf(chunks: Sequence[nn.Module], bridge: WeightBridge, folder: Path) -> None:
    """Copy a checkpoint's weights into the model's parameters, converting to their dtype.

    `chunks` are the GPTModels of this rank. Raises RlcoreError, before anything is copied, for tensors that are
    missing, left over or of the wrong shape; and, when all are read, for values that are NaN or infinite.
    """
    own = megatron_tensors(chunks)
    shard = _shard(chunks[0])
    with SafetensorsFolder(folder) as source:
        coverage = bridge.coverage(source.tensors, all_megatron_names(chunks))
        raise_if_any([*coverage.problems(str(folder)), *misfits(bridge, source, own, shard.size)])
        raise_if_any(
            [p for name, tensor in own.items() for p in _fill(tensor, bridge.by_megatron[name], source, shard)]
        )


def misfits(
    bridge: WeightBridge, source: SafetensorsFolder, own: Mapping[str, Tensor], tp: int
) -> Iterator[Problem]:
    """Tensors of the checkpoint whose shape or type is not what the model's parameters need."""
    for name, tensor in own.items():
        entry = bridge.by_megatron.get(name)
        if entry is None or any(hf not in source.tensors for hf in entry.hf):
            continue
        shapes = entry.transform.source_shapes(tuple(tensor.shape), tp)
        for hf, shape in zip(entry.hf, shapes, strict=True):
            info = source.tensors[hf]
            if info.shape != shape:
                yield Problem(
                    str(source.folder / info.file), f"{hf} has shape {info.shape}, the model needs {shape}"
                )
            if info.dtype not in _READABLE:
                yield Problem(
                    str(source.folder / info.file), f"{hf} has type {info.dtype}, which cannot be trained on"
                )


@torch.no_grad()
def _fill(parameter: Tensor, entry: Entry, source: SafetensorsFolder, shard: Shard) -> Iterator[Problem]:
    value = entry.transform.read([source.slice(name) for name in entry.hf], tuple(parameter.shape), shard)
    parameter.copy_(value)
    if not torch.isfinite(value).all():
        for name in entry.hf:
            if not torch.isfinite(source.tensor(name)).all():
                place = source.folder / source.tensors[name].file
                yield Problem(str(place), f"{name} holds NaN or infinite values", "take an earlier checkpoint")


def _shard(chunk: nn.Module) -> Shard:
    group = chunk.pg_collection.tp
    return Shard(group.rank(), group.size())
