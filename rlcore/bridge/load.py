"""Fills a Megatron model from a checkpoint in Hugging Face format, each rank reading only its slices."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rlcore.bridge.check import misfits, not_finite
from rlcore.bridge.inventory import megatron_tensors, tensor_shard, whole_model
from rlcore.bridge.safetensors_io import SafetensorsFolder
from rlcore.bridge.table import Entry, WeightBridge
from rlcore.bridge.transforms import Shard
from rlcore.errors import Problem
from rlcore.ranks import raise_together


def load_hf(chunks: Sequence[nn.Module], bridge: WeightBridge, folder: Path) -> None:
    """Copy a checkpoint's weights into the model's parameters, converting to their dtype.

    `chunks` are the GPTModels of this rank; all ranks take part. Raises RlcoreError, on all of them, before
    anything is copied, for tensors that are missing, left over or of the wrong shape; and, when all are read,
    for NaN and infinite values.
    """
    own = megatron_tensors(chunks)
    shards = {name: tensor_shard(chunks[0], name) for name in own}
    with SafetensorsFolder(folder) as source:
        coverage = bridge.coverage(source.tensors, whole_model(chunks))
        raise_together([*coverage.problems(str(folder)), *misfits(bridge, source, own, shards)])
        raise_together(
            [
                problem
                for name, parameter in own.items()
                for problem in _fill(parameter, bridge.by_megatron[name], source, shards[name])
            ]
        )


@torch.no_grad()
def _fill(parameter: Tensor, entry: Entry, source: SafetensorsFolder, shard: Shard) -> Iterator[Problem]:
    value = entry.transform.read([source.slice(name) for name in entry.hf], tuple(parameter.shape), shard)
    parameter.copy_(value)
    # A look at each element would take as much memory again. A sum may also overflow: not_finite knows.
    if not value.sum().isfinite():
        for name in entry.hf:
            yield from not_finite(source, name)
