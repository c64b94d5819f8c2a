"""What the ranks of the world tell one another besides tensors: a few numbers, names and problems."""

from collections.abc import Iterable
from typing import TypeVar

import torch.distributed as dist

from rlcore.errors import Problem, raise_if_any

T = TypeVar("T")


def from_all_ranks(value: T) -> list[T]:
    """What every rank of the world says, by rank; all ranks must ask. For a few numbers or names."""
    found: list[T] = [value] * dist.get_world_size()
    if len(found) > 1:
        dist.all_gather_object(found, value)
    return found


def raise_together(problems: Iterable[Problem]) -> None:
    """Raise one RlcoreError, on all ranks, for what any of them found; all ranks must ask."""
    raise_if_any(dict.fromkeys(problem for rank in from_all_ranks(tuple(problems)) for problem in rank))
