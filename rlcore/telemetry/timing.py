"""Where a step's wall time goes: `with timer("rollout"): …`, then `timer.end_step()`.

Every moment belongs to exactly one phase, the innermost open one or "other", so that the parts of a step
always sum to its whole.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OTHER = "other"


class PhaseTimer:
    """Splits time by phase. `on_change` is told the phase that is now current, for the stall watchdog."""

    def __init__(
        self, on_change: Callable[[str], None] | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._on_change = on_change
        self._clock = clock
        self._open: list[str] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._mark = clock()

    @property
    def current(self) -> str:
        """The innermost open phase."""
        return self._open[-1] if self._open else OTHER

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._charge()
        self._open.append(phase)
        self._announce()
        try:
            yield
        finally:
            self._charge()
            self._open.pop()
            self._announce()

    def end_step(self) -> dict[str, float]:
        """Seconds since the previous call as `{"time/<phase>": …, "time/other": …, "time/step": sum}`."""
        self._charge()
        split = {**self._seconds, OTHER: self._seconds.get(OTHER, 0.0)}
        self._seconds.clear()
        return {f"time/{phase}": seconds for phase, seconds in split.items()} | {
            "time/step": sum(split.values())
        }

    def _charge(self) -> None:
        now = self._clock()
        self._seconds[self.current] += now - self._mark
        self._mark = now

    def _announce(self) -> None:
        if self._on_change:
            self._on_change(self.current)
