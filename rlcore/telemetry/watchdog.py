"""Notices a run that stands still, and says where: the phase, what it waits for, and every thread's stack.

A slow phase and a hung one look alike from here, and whether to stop is for the operator. Not so for ranks that
work together: they can be asked, and when none of them moves for long, the run ends.
"""

import faulthandler
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rlcore.telemetry.background import Background
from rlcore.telemetry.events import STALL, EventLog
from rlcore.telemetry.timing import OTHER


class Standing(Protocol):
    """No rank has moved for `seconds`; `text` says who waits for whom."""

    @property
    def seconds(self) -> float: ...

    @property
    def text(self) -> str: ...


class Ranks(Protocol):
    """Those who work together, as far as the watchdog knows them."""

    def stall(self) -> Standing | None:
        """How they stand in the call under way; None where there is none, or nobody to be asked."""
        ...

    def give_up(self, reason: str) -> None:
        """End the call under way, and them."""
        ...


class Watchdog(Background):
    """Warns once `stall_after` seconds pass without progress, then again each time the wait has doubled.

    `warn` is given one line of text, from the watchdog's own thread. What `ranks` do counts as progress too;
    once none of them has moved for `end_after` seconds they are given up. Use it as a context manager.
    """

    def __init__(
        self,
        events: EventLog,
        logs: Path,
        stall_after: float,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        ranks: Ranks | None = None,
        end_after: float = math.inf,
    ) -> None:
        super().__init__("stall-watchdog", min(stall_after / 4, 5.0), self.check)
        self._events = events
        self._logs = logs
        self._stall_after = stall_after
        self._warn = warn
        self._clock = clock
        self._ranks = ranks
        self._end_after = end_after
        self._phase = OTHER
        self.progress()

    def enter(self, phase: str) -> None:
        """A phase begins, which counts as progress; fits `PhaseTimer(on_change=…)`."""
        self._phase = phase
        self.progress()

    def progress(self, waiting_for: str = "") -> None:
        """Something moved; `waiting_for` says what the run waits for from here on."""
        self._waiting_for = waiting_for
        self._warn_after = self._stall_after
        self._moved = self._clock()

    def check(self) -> None:
        """Warn if the run stands still, and end ranks that have long done so."""
        idle = self._clock() - self._moved
        if idle < min(self._warn_after, self._end_after):
            return
        standing = self._ranks.stall() if self._ranks else None
        if standing:
            idle = min(idle, standing.seconds)
            if idle >= self._end_after and self._ranks:
                self._ranks.give_up(f"none has moved for {idle:.0f} s: {standing.text}")
        if idle < self._warn_after:
            return
        self._warn_after = 2 * idle
        stacks = self._dump_stacks()
        waiting_for = standing.text if standing else self._waiting_for
        waiting = f": {standing.text}" if standing else f", waiting for {waiting_for}" if waiting_for else ""
        self._warn(f"no progress in phase '{self._phase}' for {idle:.0f} s{waiting}; stacks are in {stacks}")
        self._events.record(
            STALL, phase=self._phase, waiting_for=waiting_for, seconds=round(idle, 1), stacks=stacks.name
        )

    def _dump_stacks(self) -> Path:
        path = self._logs / f"stall-{self._phase}.txt"
        with path.open("a") as file:
            file.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} phase {self._phase}: {self._waiting_for}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        return path
