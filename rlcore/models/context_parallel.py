"""How context-parallel (CP) ranks share packed sequences: padding, splitting, merging, rolling, scores of all.

Pure arithmetic on lengths, but for the two functions that take a process group. What attention makes of the
pieces is its own concern. Axes: s packed tokens, t response tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor

Layout = Literal["zigzag", "contiguous"]


@dataclass(frozen=True)
class Piece:
    """A run of one sequence's tokens on this rank: `rows` among its own tokens, `places` among everybody's.

    `seen` are the places that causal attention shows to its last token.
    """

    rows: slice
    places: range
    seen: slice


@dataclass(frozen=True)
class ContextSplit:
    """What rank `rank` of `size` has of packed sequences, each of which is cut into pieces of equal length.

    "contiguous" gives rank r piece r. "zigzag", the layout of TransformerEngine and of ring attention, makes
    twice as many pieces and gives rank r the pieces r and 2·size-1-r, so that causal attention costs all alike.
    A rank's tokens are padded to a multiple of `multiple`. Lengths given to methods other than `padded` are
    those that it returned.
    """

    layout: Layout = "zigzag"
    size: int = 1
    rank: int = 0
    multiple: int = 1

    @property
    def cuts(self) -> int:
        """Pieces of a sequence; its length must be a multiple."""
        return self.size * len(self._own(self.rank))

    def padded(self, lengths: Sequence[int], tokens: int = 0, *, absent: int = 0) -> tuple[int, ...]:
        """Lengths with padding at each sequence's end; one more sequence, if needed, is padding altogether.

        They sum to `tokens` at least. `absent` tokens have no row of their own: the others are what is padded.
        """
        padded = [-(-length // self.cuts) * self.cuts for length in lengths]
        # A multiple of `cuts` too, so that what is missing can be cut.
        unit = self.cuts * self.multiple
        total = max(sum(padded), tokens)
        missing = total + (absent - total) % unit - sum(padded)
        return (*padded, missing) if missing else tuple(padded)

    def pieces(self, lengths: Sequence[int]) -> list[Piece]:
        """This rank's pieces, sequence by sequence, each sequence's first piece first."""
        found, row = [], 0
        for start, length in zip(_offsets(lengths), lengths, strict=False):
            size = length // self.cuts
            for number in self._own(self.rank):
                places = range(start + number * size, start + (number + 1) * size)
                found.append(Piece(slice(row, row + size), places, slice(start, places.stop)))
                row += size
        return found

    def places(self, lengths: Sequence[int]) -> Tensor:
        """Where each of this rank's tokens stands in the whole row of packed tokens: int64 [s]."""
        return torch.cat([torch.arange(x.places.start, x.places.stop) for x in self.pieces(lengths)])

    def positions(self, lengths: Sequence[int]) -> Tensor:
        """Position of each of this rank's tokens in its own sequence: int64 [s]."""
        whole = torch.cat([torch.arange(length) for length in lengths])
        return whole if self.size == 1 else whole[self.places(lengths)]

    def split(self, x_s: Tensor, lengths: Sequence[int]) -> Tensor:
        """This rank's rows of the whole [s, …]."""
        return x_s if self.size == 1 else x_s[self.places(lengths).to(x_s.device)]

    def merging(self, lengths: Sequence[int]) -> Tensor:
        """Index that puts rows of all ranks, laid end to end by rank, into the whole's order: int64 [s]."""
        return torch.cat([other.places(lengths) for other in self._everybody()]).argsort()

    def local(self, places_t: Tensor, lengths: Sequence[int]) -> tuple[Tensor | None, Tensor]:
        """Which of these places in the whole are this rank's (None: all), and the rows where it has them."""
        if self.size == 1:
            return None, places_t
        row_s = torch.full((sum(lengths),), -1)
        own_s = self.places(lengths)
        row_s[own_s] = torch.arange(len(own_s))
        row_t = row_s[places_t]
        local_t = (row_t >= 0).nonzero()[:, 0]
        return local_t, row_t[local_t]

    def roll(self, x_s: Tensor, lengths: Sequence[int], gather: Callable[[Tensor], Tensor]) -> Tensor:
        """Give each of this rank's tokens [s, …] its successor's row; the last of a sequence gets zeros.

        `gather` lays what each rank calls it with, the first rows of its pieces, end to end by rank.
        """
        pieces = self.pieces(lengths)
        heads = gather(x_s[[piece.rows.start for piece in pieces]])
        starts = [piece.places.start for other in self._everybody() for piece in other.pieces(lengths)]
        head_of = {place: len(x_s) + number for number, place in enumerate(starts)}
        for end in _offsets(lengths)[1:]:
            head_of[end] = len(x_s) + len(starts)
        successor_s = torch.arange(1, len(x_s) + 1)
        for piece in pieces:
            successor_s[piece.rows.stop - 1] = head_of[piece.places.stop]
        rows = torch.cat([x_s, heads, torch.zeros_like(x_s[:1])])
        return rows[successor_s.to(x_s.device)]

    def _own(self, rank: int) -> tuple[int, ...]:
        if self.layout == "contiguous" or self.size == 1:
            return (rank,)
        return (rank, 2 * self.size - 1 - rank)

    def _everybody(self) -> list["ContextSplit"]:
        return [ContextSplit(self.layout, self.size, rank, self.multiple) for rank in range(self.size)]


def _offsets(lengths: Sequence[int]) -> list[int]:
    """Start of each sequence, and the end of the last."""
    return [0, *accumulate(lengths)]


def pad(x_s: Tensor, lengths: Sequence[int], padded: Sequence[int]) -> Tensor:
    """Give sequences laid end to end [s, …] the lengths `padded`, with zeros at their ends."""
    if tuple(lengths) == tuple(padded):
        return x_s
    out_s = x_s.new_zeros(sum(padded), *x_s.shape[1:])
    for part, start in zip(x_s.split(list(lengths)), _offsets(padded), strict=False):
        out_s[start : start + len(part)] = part
    return out_s


def gather_rows(x_s: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Rows of all CP ranks, end to end by rank; the gradient of a rank's rows is the sum over all ranks."""
    return gather_from_sequence_parallel_region(x_s, group=group)


def whole_scores(local: Tensor, local_t: Tensor, tokens: int, group: dist.ProcessGroup) -> Tensor:
    """Scores [t] of all `tokens` response tokens, of which this rank has those at `local_t`.

    Every CP rank goes on to the same loss, so a rank's gradient is that of its own scores alone; data
    parallelism adds up what ranks make of them.
    """
    zeros_t = local.new_zeros(tokens)
    return reduce_from_tensor_model_parallel_region(zeros_t.index_copy(0, local_t, local), group=group)
