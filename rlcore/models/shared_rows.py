"""Rows of a micro-batch in which equal beginnings of sequences are there once, for all that begin with them.

What a token becomes follows from the tokens up to it, so that samples of one prompt need its activations once.
Only attention has to see whole sequences. Axes: w tokens of all sequences laid end to end, u rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

# Spreading rows over tokens costs about as much as computing this share of them.
_LEAST_SHARE = 0.05


@dataclass(frozen=True)
class SharedRows:
    """`row_w` is the row of each token, `first_u` the first token that has this row; both int64."""

    row_w: Tensor
    first_u: Tensor

    @classmethod
    def of(cls, beginnings: Sequence[Sequence[int]], lengths: Sequence[int]) -> "SharedRows | None":
        """Describe sequences of these lengths that share rows where their `beginnings` are equal as a whole.

        None where too few tokens do without a row of their own to gain from it.
        """
        first_w = torch.arange(sum(lengths))
        origin: dict[tuple[int, ...], int] = {}
        for beginning, start in zip(map(tuple, beginnings), accumulate(lengths, initial=0), strict=False):
            first = origin.setdefault(beginning, start)
            first_w[start : start + len(beginning)] = torch.arange(first, first + len(beginning))
        first_u, row_w = first_w.unique(return_inverse=True)
        rows = cls(row_w, first_u)
        return rows if rows.absent >= _LEAST_SHARE * len(row_w) else None

    @property
    def absent(self) -> int:
        """Tokens without a row of their own."""
        return len(self.row_w) - len(self.first_u)

    def padded(self, tokens: int) -> "SharedRows":
        """The same after padding at the end that makes them so many tokens."""
        more = torch.arange(tokens - len(self.row_w))
        row_w = torch.cat([self.row_w, len(self.first_u) + more])
        return SharedRows(row_w, torch.cat([self.first_u, len(self.row_w) + more]))

    def to(self, device: torch.device) -> "SharedRows":
        return SharedRows(self.row_w.to(device), self.first_u.to(device))

    def spread(self, x_u: Tensor) -> Tensor:
        """Give each token what its row of x [u, …] has: [w, …]."""
        return x_u.index_select(0, self.row_w)

    def once(self, x_w: Tensor) -> Tensor:
        """Give each row what its first token has of x [w, …]: [u, …]."""
        return x_w.index_select(0, self.first_u)
