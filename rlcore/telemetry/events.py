"""What happened in a run and when: starts, ends, checkpoints, warnings. Numbers belong to metrics.py."""

import time
from pathlib import Path
from typing import Any

from rlcore.telemetry.files import JsonLines, read_json_lines

START, END, STALL = "start", "end", "stall"


class EventLog:
    """Appends `{time, attempt, kind, …}`; `time` is Unix seconds. Threads may share it."""

    def __init__(self, path: Path, attempt: int) -> None:
        self._lines = JsonLines(path)
        self._attempt = attempt

    def record(self, kind: str, **details: Any) -> None:
        self._lines.append({"time": round(time.time(), 3), "attempt": self._attempt, "kind": kind, **details})

    def close(self) -> None:
        self._lines.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events in the order of writing; none if there is no file."""
    return read_json_lines(path)


def last_attempt(path: Path) -> int:
    """Number of the newest attempt in the file of events, 0 before the first."""
    return max((event.get("attempt", 0) for event in read_events(path)), default=0)
