"""The numbers of a run, one row a step: `{attempt, step, time, "reward/mean": …, "time/rollout": …}`.

A resumed run computes some steps again. Their old rows stay in the file; readers take the newest attempt.
Training and evaluation of one step are rows of their own, because they may belong to different attempts.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlcore.telemetry.files import JsonLines, read_json_lines

Row = dict[str, Any]
EVALUATION = "eval/"


class MetricsLog:
    """Appends rows of flat metric names; a value that is not finite is written as null."""

    def __init__(self, path: Path, attempt: int) -> None:
        self._lines = JsonLines(path)
        self._attempt = attempt

    def append(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one row; `time` becomes Unix seconds."""
        self._lines.append({"attempt": self._attempt, "step": step, "time": round(time.time(), 3), **metrics})

    def close(self) -> None:
        self._lines.close()


def read_metrics(path: Path) -> list[Row]:
    """One row per step in the order of steps: what its newest attempt measured, evaluations included."""
    newest: dict[tuple[int, bool], Row] = {}
    for row in read_json_lines(path):
        key = (row["step"], any(name.startswith(EVALUATION) for name in row))
        older = newest.get(key, row)
        if row["attempt"] >= older["attempt"]:
            newest[key] = {**older, **row} if row["attempt"] == older["attempt"] else row
    steps: dict[int, Row] = {}
    for (step, _), row in sorted(newest.items()):
        steps[step] = {**steps.get(step, {}), **row}
    return list(steps.values())


def values(rows: list[Row], name: str) -> list[float]:
    """The finite values of one metric, in the order of steps."""
    return [row[name] for row in rows if row.get(name) is not None]


def evaluation_names(rows: list[Row]) -> list[str]:
    """Names of the evaluation sets, in the order of their first appearance."""
    names = [name.split("/")[1] for row in rows for name in row if name.startswith(EVALUATION)]
    return list(dict.fromkeys(names))
