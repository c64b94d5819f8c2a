"""Gives a Megatron model's weights in the names of the model hub: to an engine, or to a folder.

Parts that are spread over ranks come together on rank 0, one parameter at a time.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _get_default_store

from rlcore.bridge.check import DTYPES
from rlcore.bridge.inventory import Held, megatron_tensors, whole_model
from rlcore.bridge.safetensors_io import WEIGHT_FILES, SafetensorsFolder, write_folder
from rlcore.bridge.table import Entry, WeightBridge
from rlcore.errors import Problem, RlcoreError, fail, raise_if_any
from rlcore.ranks import raise_together

GIB = 2**30
_RECEIVER = 0
# Ranks that stand still are ended by who watches them.
_LONGER_THAN_ANY_DISK = timedelta(days=7)


class Exporter:
    """Iterating gives (hub name, tensor) of every weight of the whole model, as it stands at that moment.

    All ranks must make it, and iterate in step. Rank 0 is given the values, the others meta tensors of the same
    shapes and types, so that all can count bytes alike; a rank sends what it holds to rank 0 and receives
    nothing. Who holds what is exchanged once, when this is made. What rank 0 holds itself is a view of the
    parameter where the table allows. Raises RlcoreError for parameters that no row of the bridge claims.
    """

    def __init__(self, chunks: Sequence[nn.Module], bridge: WeightBridge) -> None:
        self.bridge = bridge
        self._own = megatron_tensors(chunks)
        whole = whole_model(chunks)
        raise_if_any(
            Problem("weight bridge", f"{name} is in the model, but no row claims it")
            for name in whole
            if name not in bridge.by_megatron
        )
        self._plan = [(entry, whole[entry.megatron]) for entry in bridge.entries if entry.megatron in whole]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for entry, held in self._plan:
            yield from zip(entry.hf, self._tensors(entry, held), strict=True)

    def _tensors(self, entry: Entry, held: Held) -> tuple[Tensor, ...]:
        ranks = held.ranks if entry.transform.split else held.ranks[:1]
        if dist.get_rank() == _RECEIVER:
            return entry.transform.write(self._receive(entry.megatron, held, ranks))
        if dist.get_rank() in ranks:
            _exchange([dist.P2POp(dist.isend, self._own[entry.megatron].detach(), _RECEIVER)])
        shapes = entry.transform.source_shapes(held.shape, len(held.ranks))
        return tuple(torch.empty(shape, dtype=held.dtype, device="meta") for shape in shapes)

    def _receive(self, name: str, held: Held, ranks: Sequence[int]) -> list[Tensor]:
        """The parts of a parameter, this rank's own among them as it is."""
        device = next(iter(self._own.values())).device
        parts = [
            self._own[name].detach()
            if rank == _RECEIVER
            else torch.empty(held.shape, dtype=held.dtype, device=device)
            for rank in ranks
        ]
        _exchange(
            [
                dist.P2POp(dist.irecv, part, rank)
                for part, rank in zip(parts, ranks, strict=True)
                if rank != _RECEIVER
            ]
        )
        return parts


def _exchange(operations: list[dist.P2POp]) -> None:
    """As a batch even if there is one: NCCL would open a connection of its own for a single one."""
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()


def save_hf(
    exporter: Exporter,
    folder: Path,
    *,
    source: Path,
    shard_bytes: int = 5 * GIB,
    enter: Callable[[str], None] = lambda phase: None,
) -> None:
    """Write a complete checkpoint like `source`: the same tensor names and types, config and tokenizer copied.

    All ranks take part, rank 0 writes; `enter` is told how far it is. Nothing stands at `folder` until all is
    written. Raises RlcoreError, on all ranks, when something is there already, or when it cannot be written.
    """
    tensors = _in_step(exporter, str(folder), shard_bytes, enter)
    problems: Sequence[Problem] = ()
    if dist.get_rank() == _RECEIVER:
        try:
            _write(tensors, exporter.bridge, folder, source, shard_bytes)
        except RlcoreError as error:
            problems = error.problems
        except (OSError, SafetensorError) as error:
            problems = [Problem(str(folder), f"cannot be written: {error}", "free space, or another folder")]
    for _ in tensors:
        pass  # What others send must be received, even if no one can write it.
    raise_together(problems)


def _in_step(
    tensors: Iterable[tuple[str, Tensor]], key: str, most_bytes: int, enter: Callable[[str], None]
) -> Iterator[tuple[str, Tensor]]:
    """Have others send `most_bytes` or a little more when rank 0 asks for them, not while it writes.

    For that they wait in the store, however long it takes: what waits in a collective is ended by its time-out.
    """
    store, sent, asked = _get_default_store(), 0, 0
    for name, tensor in tensors:
        yield name, tensor
        sent += tensor.nbytes
        if sent < asked + most_bytes:
            continue
        asked = sent
        enter(f"writing a checkpoint, {sent / GIB:.1f} GiB so far")
        if dist.get_rank() == _RECEIVER:
            store.set(f"{key}/{asked}", "asked for")
        else:
            store.wait([f"{key}/{asked}"], _LONGER_THAN_ANY_DISK)


def _write(
    tensors: Iterator[tuple[str, Tensor]], bridge: WeightBridge, folder: Path, source: Path, shard_bytes: int
) -> None:
    if folder.exists():
        raise fail(str(folder), "exists already", "name a new folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns(*WEIGHT_FILES))
    with SafetensorsFolder(source) as original:
        write_folder(partial, _like(original, tensors, bridge), shard_bytes=shard_bytes)
    partial.rename(folder)


def _like(
    original: SafetensorsFolder, tensors: Iterator[tuple[str, Tensor]], bridge: WeightBridge
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that the source checkpoint has and someone needs, in the source's types."""
    repeats = defaultdict(list)
    for name, of in bridge.derived.items():
        if name in original.tensors:
            repeats[of].append(name)
    written = set()
    for name, tensor in tensors:
        written.add(name)
        converted = tensor.to(DTYPES[original.tensors[name].dtype]) if name in original.tensors else tensor
        yield name, converted
        for repeat in repeats[name]:
            yield repeat, converted.clone()
    for name in original.tensors:
        if name not in written and bridge.passes_through(name):
            yield name, original.tensor(name)
