"""What a rank does at this moment, asked from outside while it does it; and who, of many, is waited for."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlcore.cluster.group import Stall


@dataclass(frozen=True)
class Beat:
    """An answer: the phase entered last in the call under way, how many that makes, and seconds since.

    `phase` is None where the rank has finished the call.
    """

    phase: str | None
    entered: int
    seconds: float


class Heart:
    """Keeps what one rank does; written by the thread that works, read by the one that answers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._now: tuple[str | None, int, float] = (None, 0, clock())

    def begin(self) -> None:
        """A call starts."""
        self._now = ("start", 0, self._clock())

    def enter(self, phase: str) -> None:
        """The call under way comes to a phase."""
        self._now = (phase, self._now[1] + 1, self._clock())

    def end(self) -> None:
        """The call is done."""
        self._now = (None, self._now[1], self._clock())

    def beat(self) -> Beat:
        phase, entered, since = self._now
        return Beat(phase, entered, self._clock() - since)


def stall(call: str, beats: Mapping[int, Beat | None], silence: float) -> Stall:
    """Sum up the answers of ranks, by rank, in a call that all are in; None stands for no answer.

    Waited for are those that do not answer, else those that came least far. Where none answers, nothing has
    moved for the seconds of `silence` since one did.
    """
    known = {rank: beat for rank, beat in beats.items() if beat}
    working = {rank: beat for rank, beat in known.items() if beat.phase is not None}
    silent = [rank for rank in beats if rank not in known]
    least = min((beat.entered for beat in working.values()), default=0)
    behind = silent or [rank for rank, beat in working.items() if beat.entered == least]
    waiting = [rank for rank in beats if rank not in behind]
    parts = [_place(call, rank, beats[rank]) for rank in behind]
    if waiting:
        whom = "it" if len(behind) == 1 else "them"
        where = next((_since(working[rank]) for rank in waiting if rank in working), "finished")
        parts.append(f"{_names(waiting)} {'waits' if len(waiting) == 1 else 'wait'} for {whom} ({where})")
    return Stall(min((beat.seconds for beat in known.values()), default=silence), "; ".join(parts))


def _place(call: str, rank: int, beat: Beat | None) -> str:
    if beat is None:
        return f"rank {rank} does not answer in {call}: its process may be stopped"
    return f"rank {rank} is in {call}: {_since(beat)}"


def _since(beat: Beat) -> str:
    return f"{beat.phase} since {beat.seconds:.0f} s"


def _names(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
