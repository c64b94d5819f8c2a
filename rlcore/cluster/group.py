"""The worker group: the ranks that train together, called as one. One rank lives in this process.

More of them are processes of a local Ray (ray_group). What a worker is, its maker decides: nothing here knows
what its methods do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rlcore.errors import RlcoreError

if TYPE_CHECKING:
    from torch.distributed import Store


@dataclass(frozen=True)
class Rank:
    """A worker's place among those that work together, and where they meet.

    The worker says by `enter(phase)` what it does from here on, so that a rank that stands still can be named.
    """

    number: int = 0
    world_size: int = 1
    store: "Store | None" = None
    enter: Callable[[str], None] = lambda phase: None


# Makes the worker of a rank, on that rank's process; crosses processes itself.
Make = Callable[[Rank], Any]


@dataclass(frozen=True)
class Stall:
    """No rank has moved for `seconds`; `text` says where each of them is."""

    seconds: float
    text: str


class RanksLostError(RlcoreError):
    """The ranks are gone, and what they held with them; nothing can be asked of the group any more."""


class WorkerGroup(Protocol):
    """Workers, one for each rank, whose methods are called on all ranks at once."""

    @property
    def alive(self) -> bool:
        """Whether the workers can be called."""
        ...

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Call a method on every rank with the same arguments; return the results by rank.

        Raises RlcoreError as the ranks raised it, and RanksLostError, naming the rank, for any other end.
        """
        ...

    def check(self) -> None:
        """Raise RanksLostError if a rank has ended."""
        ...

    def log_to(self, folder: Path) -> None:
        """Keep what ranks print in `folder`, as trainer-<rank>.log; one rank prints where its process does."""
        ...

    def stall(self) -> Stall | None:
        """How long no rank has moved in the call under way; None between calls. Any thread may ask."""
        ...

    def give_up(self, reason: str) -> None:
        """End all ranks: the call under way raises RanksLostError with `reason`. Any thread may ask."""
        ...

    def close(self) -> None:
        """End every worker and what ran for it."""
        ...


class InProcess:
    """A group of one rank, in this process: a call is a plain call, and a debugger steps into it."""

    alive = True

    def __init__(self, make: Make) -> None:
        self._worker = make(Rank())

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        return [getattr(self._worker, method)(*args, **kwargs)]

    def check(self) -> None:
        pass

    def log_to(self, folder: Path) -> None:
        pass

    def stall(self) -> Stall | None:
        return None

    def give_up(self, reason: str) -> None:
        """A thread cannot end another's work: the watchdog's warnings are all there is."""

    def close(self) -> None:
        pass
