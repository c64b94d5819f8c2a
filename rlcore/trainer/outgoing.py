"""Gives a rank's part in a sync: bundles of the current weights, as tensors or packed for servers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from rlcore.errors import Problem, RlcoreError
from rlcore.ranks import raise_together
from rlcore.sync.buckets import Named, buckets
from rlcore.sync.outbox import Outbox
from rlcore.sync.parcel import Packing, Parcel

T = TypeVar("T")


class Outgoing:
    """Iterates over `tensors` once a sync. All ranks call in step; rank 0 alone is given something."""

    def __init__(self, tensors: Iterable[Named], device: torch.device) -> None:
        self._tensors = tensors
        self._outbox = Outbox(device)
        self._left: Iterator[dict[str, torch.Tensor]] = iter(())
        self._packing: Packing | None = None

    def first(self, most_bytes: int, packing: Packing | None) -> dict[str, torch.Tensor] | Parcel:
        """Begin a sync; returns its first bundle. Raises RlcoreError, on all ranks, if it cannot begin."""
        self._left, self._packing = buckets(self._tensors, most_bytes), packing
        if packing:
            _together(lambda: self._outbox.open(packing, most_bytes))
        return self.next()

    def next(self) -> dict[str, torch.Tensor] | Parcel:
        """The bundle after the last one, empty after all.

        Raises RlcoreError, on all ranks, if it cannot be packed.
        """
        bucket = next(self._left, {})
        if self._packing and bucket:
            return _together(lambda: self._outbox.pack(bucket)) or {}
        return bucket if dist.get_rank() == 0 else {}

    def give_up(self) -> None:
        """Nobody asks for more: let go those who wait for a bundle."""
        self._outbox.leave()


def _together(work: Callable[[], T]) -> T | None:
    """Have rank 0 work; what it refuses is raised on all ranks."""
    result: T | None = None
    problems: Sequence[Problem] = ()
    if dist.get_rank() == 0:
        try:
            result = work()
        except RlcoreError as error:
            problems = error.problems
    raise_together(problems)
    return result
