"""How tensors of a checkpoint make up one Megatron parameter, and come back out of it.

A transform knows both directions and how tensor parallelism splits the parameter, so that a rank reads no
more than its own slice. Sources are tensors, or lazy slices of a safetensors file: whatever ranges can index.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Shard(NamedTuple):
    """A tensor-parallel rank among how many."""

    rank: int = 0
    size: int = 1


class Transform(ABC):
    """The way between a checkpoint's tensors and one Megatron parameter."""

    sources: int = 1
    """How many tensors of the checkpoint there are."""
    split: bool = True
    """Whether ranks hold parts; else each holds the whole, and one of them is enough to `write`."""

    @abstractmethod
    def source_shapes(self, shape: Shape, tp: int) -> tuple[Shape, ...]:
        """Shapes of the checkpoint's tensors, given that of one rank's part of the parameter."""

    @abstractmethod
    def read(self, sources: Sequence[Any], shape: Shape, shard: Shard) -> Tensor:
        """Make one rank's part, of `shape`, from the checkpoint's tensors."""

    @abstractmethod
    def write(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Give back the checkpoint's tensors from the parts of all ranks in order; views where possible."""


class Replicated(Transform):
    """Every rank holds the whole tensor."""

    split = False

    def source_shapes(self, shape: Shape, tp: int) -> tuple[Shape, ...]:
        return (shape,)

    def read(self, sources: Sequence[Any], shape: Shape, shard: Shard) -> Tensor:
        return sources[0][:]

    def write(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (shards[0],)


class Columns(Transform):
    """The second axis is split evenly (a row-parallel weight)."""

    def source_shapes(self, shape: Shape, tp: int) -> tuple[Shape, ...]:
        return ((shape[0], shape[1] * tp, *shape[2:]),)

    def read(self, sources: Sequence[Any], shape: Shape, shard: Shard) -> Tensor:
        width = shape[1]
        return sources[0][:, shard.rank * width : (shard.rank + 1) * width]

    def write(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (_join(shards, dim=1),)


class Run(NamedTuple):
    """Consecutive rows of one source; `source` None stands for rows of zeros that no source has."""

    source: int | None
    start: int
    stop: int


@dataclass(frozen=True)
class Rows(Transform):
    """The first axis is split evenly, after its rows were gathered from the sources run by run."""

    def runs(self, rows: int, tp: int) -> list[Run]:
        """Where the rows of the whole parameter (all ranks' parts laid end to end) come from."""
        return [Run(0, 0, rows)]

    def source_shapes(self, shape: Shape, tp: int) -> tuple[Shape, ...]:
        runs = self.runs(shape[0] * tp, tp)
        return tuple(
            (max(run.stop for run in runs if run.source == source), *shape[1:])
            for source in range(self.sources)
        )

    def read(self, sources: Sequence[Any], shape: Shape, shard: Shard) -> Tensor:
        rows = shape[0]
        runs = _clip(self.runs(rows * shard.size, shard.size), shard.rank * rows, (shard.rank + 1) * rows)
        return _join([_rows_of(sources, run, shape) for run in runs])

    def write(self, shards: Sequence[Tensor]) -> tuple[Tensor, ...]:
        whole = _join(shards)
        runs = _clip(self.runs(len(whole), len(shards)), 0, len(whole))
        ends = accumulate((run.stop - run.start for run in runs), initial=0)
        pieces = [(run, whole[start:stop]) for run, (start, stop) in zip(runs, pairwise(ends), strict=True)]
        return tuple(_assemble(pieces, source) for source in range(self.sources))


@dataclass(frozen=True)
class PaddedVocabulary(Rows):
    """Embedding or output rows, followed by zeros so that ranks share them equally."""

    vocab_size: int

    def runs(self, rows: int, tp: int) -> list[Run]:
        return [Run(0, 0, self.vocab_size), Run(None, 0, rows - self.vocab_size)]


@dataclass(frozen=True)
class PackedQKV(Rows):
    """Separate q, k, v projections as Megatron packs them: for each group its queries, key and value.

    With more ranks than groups, rows are shared equally all the same: a rank's part may end inside of a head,
    and Megatron gathers the products.
    """

    heads: int
    groups: int
    head_dim: int
    sources = 3

    def runs(self, rows: int, tp: int) -> list[Run]:
        queries, key = self.heads // self.groups * self.head_dim, self.head_dim
        return [
            run
            for g in range(self.groups)
            for run in (
                Run(0, g * queries, (g + 1) * queries),
                Run(1, g * key, (g + 1) * key),
                Run(2, g * key, (g + 1) * key),
            )
        ]


@dataclass(frozen=True)
class Gated(Rows):
    """Gate and up projections: each rank holds its part of the gate, then its part of the up projection."""

    sources = 2

    def runs(self, rows: int, tp: int) -> list[Run]:
        part = rows // (2 * tp)
        return [Run(s, r * part, (r + 1) * part) for r in range(tp) for s in (0, 1)]


@dataclass(frozen=True)
class FusedGated(Rows):
    """Gate and up projections that the checkpoint holds as one tensor, the gate first."""

    def runs(self, rows: int, tp: int) -> list[Run]:
        part, half = rows // (2 * tp), rows // 2
        return [Run(0, first + r * part, first + (r + 1) * part) for r in range(tp) for first in (0, half)]


def _clip(runs: list[Run], start: int, stop: int) -> list[Run]:
    """Cut the runs to the rows [start, stop) of the parameter, and join runs that continue one another."""
    clipped: list[Run] = []
    position = 0
    for source, first, last in runs:
        low = first + max(0, start - position)
        high = last - max(0, position + last - first - stop)
        position += last - first
        if low >= high:
            continue
        if clipped and clipped[-1].source == source and clipped[-1].stop == low:
            clipped[-1] = clipped[-1]._replace(stop=high)
        else:
            clipped.append(Run(source, low, high))
    return clipped


def _rows_of(sources: Sequence[Any], run: Run, shape: Shape) -> Tensor:
    if run.source is None:
        return torch.zeros(run.stop - run.start, *shape[1:])
    return sources[run.source][run.start : run.stop]


def _assemble(pieces: list[tuple[Run, Tensor]], source: int) -> Tensor:
    own = sorted(
        ((run.start, piece) for run, piece in pieces if run.source == source), key=lambda pair: pair[0]
    )
    return _join([piece for _, piece in own])


def _join(pieces: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The pieces side by side; without a copy where rows follow one another in memory already."""
    if len(pieces) == 1:
        return pieces[0]
    first = pieces[0]
    if dim == 0 and _follow_one_another(pieces):
        return first.as_strided((sum(map(len, pieces)), *first.shape[1:]), first.stride())
    return torch.cat(list(pieces), dim)


def _follow_one_another(rows: Sequence[Tensor]) -> bool:
    ends = [piece.data_ptr() + piece.nbytes for piece in rows]
    return (
        all(piece.is_contiguous() for piece in rows)
        and len({piece.untyped_storage().data_ptr() for piece in rows}) == 1
        and all(end == piece.data_ptr() for end, piece in zip(ends, rows[1:], strict=False))
    )
