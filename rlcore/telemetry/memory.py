"""Peak memory of a run, its child processes included, read from /proc (Linux).

Measured: the sum of the resident sets (VmRSS) of this process and all its descendants, sampled, and never
less than this process's own high-water mark (VmHWM). Pages that processes share count once for each, so
that the number errs upwards. Elsewhere than on Linux there is no number.
"""

import os
from contextlib import suppress
from pathlib import Path

from rlcore.telemetry.background import Background

PROC = Path("/proc")
GB = 1e9


class MemoryMeter(Background):
    """Samples the memory of the process tree in the background; use it as a context manager."""

    def __init__(self, every: float = 0.5) -> None:
        super().__init__("memory-meter", every, self._sample)
        self._peak = 0

    def peak_gb(self) -> float | None:
        """Highest use so far in GB (10^9 bytes)."""
        self._sample()
        return self._peak / GB if self._peak else None

    def _sample(self) -> None:
        own_peak = _status(os.getpid()).get("VmHWM", 0)
        self._peak = max(self._peak, own_peak, tree_rss(os.getpid()))


def tree_rss(root: int) -> int:
    """Bytes resident in process `root` and its descendants now; 0 where there is no /proc."""
    return sum(_status(pid).get("VmRSS", 0) for pid in (root, *descendants(root)))


def descendants(root: int) -> list[int]:
    """Process ids of all children of a process, and of theirs; none where there is no /proc."""
    found, pending = [], _children(root)
    while pending:
        found.append(pending.pop())
        pending += _children(found[-1])
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):  # the process has ended meanwhile
        for task in (PROC / str(pid) / "task").iterdir():
            with suppress(OSError):  # or one of its threads
                found += map(int, (task / "children").read_text().split())
    return found


def _status(pid: int) -> dict[str, int]:
    """The sizes in /proc/PID/status, in bytes."""
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in fields}
