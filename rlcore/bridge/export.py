"""Gives a Megatron model's weights in the names of the model hub: to an engine, or to a folder."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor, nn

from rlcore.bridge.check import DTYPES
from rlcore.bridge.inventory import megatron_tensors
from rlcore.bridge.safetensors_io import INDEX, SafetensorsFolder, write_folder
from rlcore.bridge.table import WeightBridge
from rlcore.errors import Problem, fail, raise_if_any

_WEIGHTS = ("*.safetensors", INDEX, "*.bin", "*.bin.index.json", "*.pt", "*.pth")
GIB = 2**30


class Exporter:
    """Iterating gives (hub name, tensor) of every weight, as it stands at that moment.

    Names are matched once, when this is made; tensors are views of the parameters where the table allows, so
    that an iteration costs little. Raises RlcoreError for parameters that no row of the bridge claims.
    """

    def __init__(self, chunks: Sequence[nn.Module], bridge: WeightBridge) -> None:
        own = megatron_tensors(chunks)
        raise_if_any(
            Problem("weight bridge", f"{name} is in the model, but no row claims it")
            for name in own
            if name not in bridge.by_megatron
        )
        self._plan = [(entry, own[entry.megatron]) for entry in bridge.entries if entry.megatron in own]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for entry, parameter in self._plan:
            yield from zip(entry.hf, entry.transform.write([parameter.detach()]), strict=True)


def save_hf(
    chunks: Sequence[nn.Module],
    bridge: WeightBridge,
    folder: Path,
    *,
    source: Path,
    shard_bytes: int = 5 * GIB,
) -> None:
    """Write a complete checkpoint like `source`: the same tensor names and types, config and tokenizer copied.

    Nothing stands at `folder` until all is written. Raises RlcoreError when something is there already.
    """
    if folder.exists():
        raise fail(str(folder), "exists already", "name a new folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns(*_WEIGHTS))
    with SafetensorsFolder(source) as original:
        write_folder(partial, _like(original, chunks, bridge), shard_bytes=shard_bytes)
    partial.rename(folder)


def _like(
    original: SafetensorsFolder, chunks: Sequence[nn.Module], bridge: WeightBridge
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that the source checkpoint has and someone needs, in the source's types."""
    repeats = {of: name for name, of in bridge.derived.items() if name in original.tensors}
    for name, tensor in Exporter(chunks, bridge):
        converted = tensor.to(DTYPES[original.tensors[name].dtype]) if name in original.tensors else tensor
        yield name, converted
        if name in repeats:
            yield repeats[name], converted.clone()
    for name in original.tensors:
        if bridge.passes_through(name):
            yield name, original.tensor(name)
