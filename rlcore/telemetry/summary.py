"""The few numbers that a run comes down to, computed from its folder alone: `summary.json`."""

import os
from pathlib import Path
from typing import Any

from rlcore.telemetry.events import START, read_events
from rlcore.telemetry.files import read_json_lines, write_json
from rlcore.telemetry.metrics import Row, evaluation_names, read_metrics, values
from rlcore.telemetry.run_folder import RunPaths

OCCASIONAL = ("evaluation", "checkpoint")


def summarize(
    run: Path, model: str, *, evaluation: str | None = None, warm_start: Path | None = None
) -> dict[str, Any]:
    """Sum a run up. Values that the run did not measure are None.

    `pass_at_1_before` and `_after` are the first and the last evaluation on set `evaluation` (by default the
    first set). `seconds` is wall time over all attempts, `warm_start`'s included. `tokens_per_second` are
    response tokens over the wall time of all steps, evaluations and checkpoints left out. `peak_rss_gb` is
    what `memory.py` measures, the larger of both runs. `max_logprob_gap` is the largest distance between the
    log-probs of engine and trainer.
    """
    runs = [run, warm_start] if warm_start else [run]
    rows = read_metrics(RunPaths(run).metrics)
    everything = [row for path in runs for row in read_metrics(RunPaths(path).metrics)]
    before, after = pass_at_1(rows, evaluation)
    summary = {
        "model": model,
        "pass_at_1_before": before,
        "pass_at_1_after": after,
        "seconds": round(sum(wall_seconds(path) for path in runs), 1),
        "peak_rss_gb": max(values(everything, "memory/peak_rss_gb"), default=None),
        "tokens_per_second": tokens_per_second(rows),
        "max_logprob_gap": max(values(rows, "logprob_gap/max"), default=None),
    }
    return summary | ({"warm_start": os.path.relpath(warm_start, run)} if warm_start else {})


def write_summary(
    run: Path, model: str, *, evaluation: str | None = None, warm_start: Path | None = None
) -> Path:
    """Write `summary.json` into the run folder."""
    return write_json(
        RunPaths(run).summary, summarize(run, model, evaluation=evaluation, warm_start=warm_start)
    )


def pass_at_1(rows: list[Row], evaluation: str | None = None) -> tuple[float | None, float | None]:
    """First and last pass@1 of an evaluation set, by default the first set of the run."""
    names = [evaluation] if evaluation else evaluation_names(rows)[:1]
    found = [value for name in names for value in values(rows, f"eval/{name}/pass@1")]
    return (found[0], found[-1]) if found else (None, None)


def tokens_per_second(rows: list[Row]) -> float | None:
    """Response tokens per second of iterations: generation, rewards, training, sync and all between them."""
    steps = [row for row in rows if row.get("tokens/generated") is not None and row.get("time/step")]
    if not steps:
        return None
    return sum(values(steps, "tokens/generated")) / sum(map(iteration_seconds, steps))


def iteration_seconds(row: Row) -> float:
    """Wall time of a step without what only some steps do: evaluations and checkpoints."""
    seconds: float = row["time/step"]
    return seconds - sum(row.get(f"time/{phase}") or 0.0 for phase in OCCASIONAL)


def wall_seconds(run: Path) -> float:
    """Seconds in which the run was being worked on: from each attempt's start to its last sign of life."""
    paths = RunPaths(run)
    events = read_events(paths.events)
    starts: dict[int, float] = {event["attempt"]: event["time"] for event in events if event["kind"] == START}
    ends = dict(starts)
    for sign in [*events, *read_json_lines(paths.metrics)]:
        ends[sign["attempt"]] = max(ends.get(sign["attempt"], 0.0), sign["time"])
    return sum(ends[attempt] - start for attempt, start in starts.items())
