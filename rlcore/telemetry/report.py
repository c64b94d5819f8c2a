"""One HTML page about a run: curves, samples before and after, where the time went, the exact recipe.

The page is self-contained: it loads nothing, so that it can be mailed or archived. This module decides what
is shown; charts.py computes the drawings and templates/ holds the looks.
"""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rlcore.data.sample import Message, Sample
from rlcore.errors import fail
from rlcore.telemetry import charts
from rlcore.telemetry.events import END, START, read_events
from rlcore.telemetry.files import write_text
from rlcore.telemetry.metrics import Row, evaluation_names, read_metrics, values
from rlcore.telemetry.rollouts import TRAINING, evaluation_kind, read_samples, sample_files
from rlcore.telemetry.run_folder import RunPaths, is_being_written
from rlcore.telemetry.summary import OCCASIONAL, pass_at_1, tokens_per_second, wall_seconds
from rlcore.telemetry.units import duration, number, percent

MOST_SAMPLES = 10
PHASES = ("rollout", "reward", "train", "sync", *OCCASIONAL)
CURVES: dict[str, dict[str, Any]] = {
    "reward/mean": {"title": "Reward", "note": "mean over the samples of a step"},
    "pass_rate": {"title": "Pass rate in training", "share": True, "text": percent},
    "loss": {"title": "Loss"},
    "kl": {"title": "KL to the reference", "note": "nats per token"},
    "entropy": {"title": "Entropy", "note": "nats per token"},
    "mtp/acceptance": {"title": "Drafts accepted", "note": "share that the policy would keep", "text": percent},
    "mtp/loss": {"title": "MTP loss", "note": "nats per token"},
    "router/max_load_over_mean": {"title": "Load of experts", "note": "most loaded over the mean"},
    "router/corrected_share": {"title": "Choices by correction bias", "note": "share of all", "text": percent},
    "dsa/selection_flips": {"title": "Selection flips", "note": "share of tokens", "text": percent},
    "response/length_mean": {"title": "Response length", "note": "tokens, mean"},
    "response/truncated": {"title": "Truncated responses", "note": "share cut short", "text": percent},
    "grad_norm": {"title": "Gradient norm", "note": "before clipping"},
    "lr": {"title": "Learning rate", "smooth": False},
    "tokens/per_second": {"title": "Throughput", "note": "tokens per second"},
    "perf/tflops_per_gpu": {"title": "Training", "note": "TFLOP/s of a GPU"},
    "perf/mfu": {"title": "MFU", "note": "share of the GPU's peak", "text": percent},
}
SHOWN_ELSEWHERE = re.compile(
    r"attempt$|step$|time$|time/|eval/.*/pass@|rollout/groups_dropped/|logprob_gap/|reward/.*/mean$"
)
# Environment variables of the recipe's cluster section may hold credentials; a page is made to be shared.
SECRET = re.compile(r"^(\s*[\"']?[A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|KEY)[A-Z0-9_]*[\"']?\s*:).*$", re.MULTILINE)


@dataclass(frozen=True)
class Fact:
    """A headline number: `value` under its `name`, with a remark below."""

    name: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Score:
    """pass@1 on one evaluation set, at its first and at its last of `count` evaluations."""

    name: str
    before: float | None
    after: float | None
    count: int


@dataclass(frozen=True)
class Pair:
    """The same problem answered by the first and by the last evaluated policy."""

    prompt: str
    label: str
    before: Sample
    after: Sample


@dataclass(frozen=True)
class Record:
    """What a run folder holds, read once."""

    paths: RunPaths
    rows: list[Row]
    events: list[dict[str, Any]]
    summary: dict[str, Any]
    warm_rows: list[Row]

    @classmethod
    def read(cls, run: Path) -> "Record":
        paths = RunPaths(run)
        if not paths.is_run():
            raise fail(str(run), "not a run folder: it has no events.jsonl", "the folder given as --run-dir")
        summary = _read_json(paths.summary, {})
        warm_start = summary.get("warm_start")
        warm_rows = read_metrics(RunPaths(run / warm_start).metrics) if warm_start else []
        return cls(paths, read_metrics(paths.metrics), read_events(paths.events), summary, warm_rows)

    def curve(self, name: str) -> list[charts.Point]:
        """(step, value) of one metric where it was measured."""
        return curve(self.rows, name)

    def names(self, prefix: str = "", suffix: str = "") -> list[str]:
        """The metric names between `prefix` and `suffix`, in the order of their first appearance."""
        found = dict.fromkeys(name for row in self.rows for name in row)
        return [name for name in found if name.startswith(prefix) and name.endswith(suffix)]


def write_report(run: Path) -> Path:
    """Write `report.html` into the run folder `run`, finished or not, and return its path.

    Raises RlcoreError if `run` is not a run folder.
    """
    record = Record.read(run)
    templates = Environment(
        loader=PackageLoader("rlcore.telemetry"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(number=number, percent=percent, duration=duration, json=json.dumps, clock=_clock)
    return write_text(record.paths.report, templates.get_template("report.html.jinja").render(_page(record)))


def _page(record: Record) -> dict[str, Any]:
    name, pairs, steps = _compared(record)
    return {
        "title": record.paths.root.resolve().name,
        "model": record.summary.get("model", ""),
        "status": _status(record),
        "started": record.events[0]["time"],
        "attempts": max(event["attempt"] for event in record.events),
        "scores": [_score(record, name) for name in evaluation_names(record.rows)],
        "facts": _facts(record),
        "plots": [plot for plot in _plots(record) if plot],
        "more_plots": [plot for plot in _more_plots(record) if plot],
        "time_plot": _time_plot(record),
        "time_shares": _time_shares(record),
        "pairs": pairs,
        "compared": name,
        "compared_steps": steps,
        "latest": _latest_samples(record),
        "drops": _drops(record),
        "events": [event for event in record.events if event["kind"] not in (START, END)],
        "recipe": SECRET.sub(r"\1 (hidden)", _read_text(record.paths.config)),
        "plugins": _read_json(record.paths.plugins, []),
        "environment": next((e["environment"] for e in reversed(record.events) if "environment" in e), {}),
    }


def _status(record: Record) -> Fact:
    """The run's state as a word with a remark; the word is also the CSS class of its badge."""
    if is_being_written(record.paths.root):
        return Fact("Status", "running")
    last = record.events[-1]
    if last["kind"] == END:
        return Fact("Status", last["status"], last["reason"])
    return Fact("Status", "unfinished", "the process ended without saying so")


def _facts(record: Record) -> list[Fact]:
    steps = [row["step"] for row in record.rows]
    gap = max(values(record.rows, "logprob_gap/max"), default=None)
    memory = max(values(record.rows, "memory/peak_rss_gb"), default=None)
    facts = [
        Fact("Steps", number(max(steps, default=0))),
        Fact(
            "Wall time",
            duration(wall_seconds(record.paths.root)),
            "without the warm start" if record.warm_rows else "",
        ),
        Fact(
            "Throughput",
            f"{number(tokens_per_second(record.rows))} tok/s",
            "without evaluations",
        ),
        Fact("Log-prob gap", number(gap), "largest, engine against trainer"),
    ]
    return facts + ([Fact("Peak memory", f"{memory:.1f} GB", "with child processes")] if memory else [])


def _score(record: Record, name: str) -> Score:
    before, after = pass_at_1(record.rows, name)
    return Score(name, before, after, len(record.curve(f"eval/{name}/pass@1")))


def _plots(record: Record) -> list[charts.Plot | None]:
    """The curves that every run is judged by."""
    scores = {_bare(name): record.curve(name) for name in record.names("eval/") if "/pass@" in name}
    parts = {_bare(name): record.curve(name) for name in record.names("reward/", "/mean") if name not in CURVES}
    gaps = {_bare(name): record.curve(name) for name in record.names("logprob_gap/")}
    note = "engine against trainer, nats per token"
    return [
        charts.line_plot("Evaluation", scores, share=True, text=percent, note="held-out problems solved"),
        charts.line_plot("Warm start: loss", {"loss": curve(record.warm_rows, "loss")}, note="supervised"),
        *(charts.line_plot(**looks, series={name: record.curve(name)}) for name, looks in CURVES.items()),
        charts.line_plot("Reward by part", parts if len(parts) > 1 else {}),
        charts.line_plot("Log-prob gap", gaps, log=True, note=note),
    ]


def _more_plots(record: Record) -> list[charts.Plot | None]:
    """Whatever else was measured, under its own name."""
    names = [name for name in record.names() if name not in CURVES and not SHOWN_ELSEWHERE.match(name)]
    return [charts.line_plot(name, {name: record.curve(name)}) for name in sorted(names)]


def curve(rows: list[Row], name: str) -> list[charts.Point]:
    """(step, value) of one metric where it was measured."""
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def _bare(name: str) -> str:
    """A metric's name without its family: `reward/math/mean` is `math`."""
    return name.partition("/")[2].removesuffix("/mean")


def _timed(record: Record) -> tuple[list[str], list[Row]]:
    """The phases, in the order in which a step runs them, and the rows that were timed."""
    found = {name.removeprefix("time/") for name in record.names("time/")} - {"step", "other"}
    phases = [phase for phase in PHASES if phase in found] + sorted(found.difference(PHASES))
    return [*phases, "other"], [row for row in record.rows if row.get("time/step")]


def _time_plot(record: Record) -> charts.Plot | None:
    phases, rows = _timed(record)
    layers = {phase: [row.get(f"time/{phase}") or 0.0 for row in rows] for phase in phases}
    return charts.stacked_plot(
        "Time per step", layers, [row["step"] for row in rows], text=duration, note="seconds"
    )


def _time_shares(record: Record) -> list[dict[str, Any]]:
    """Per phase: its seconds over the whole run, and its share of all."""
    phases, rows = _timed(record)
    sums = {phase: sum(values(rows, f"time/{phase}")) for phase in phases}
    whole = sum(sums.values())
    return [{"phase": phase, "seconds": sums[phase], "share": sums[phase] / whole} for phase in phases if whole]


def _compared(record: Record) -> tuple[str, list[Pair], tuple[int, int]]:
    """The first evaluation set with two kept evaluations, its first problems, and the steps compared.

    In the order of the file, never picked by outcome.
    """
    for name in evaluation_names(record.rows):
        files = sample_files(record.paths.rollouts, evaluation_kind(name))
        if len(files) < 2:
            continue
        (first, before), *_, (last, after) = files.items()
        answers = {_identity(sample): sample for sample in reversed(read_samples(after))}
        firsts = {_identity(sample): sample for sample in reversed(read_samples(before))}
        shared = [key for key in reversed(firsts) if key in answers][:MOST_SAMPLES]
        pairs = [
            Pair(prompt_text(firsts[key].prompt), firsts[key].label or "", firsts[key], answers[key])
            for key in shared
        ]
        return name, pairs, (first, last)
    return "", [], (0, 0)


def _identity(sample: Sample) -> str:
    return json.dumps([sample.prompt, sample.label], sort_keys=True)


def prompt_text(prompt: str | list[Message]) -> str:
    """A prompt as one text; a chat names its roles unless it is a single message."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0].get("content", ""))
    return "\n".join(f"{message.get('role', '')}: {message.get('content', '')}" for message in prompt)


def _latest_samples(record: Record) -> list[dict[str, Any]]:
    files = sample_files(record.paths.rollouts, TRAINING)
    samples = read_samples(list(files.values())[-1])[:MOST_SAMPLES] if files else []
    return [{"prompt": prompt_text(sample.prompt), "sample": sample} for sample in samples]


def _drops(record: Record) -> list[Fact]:
    """How many groups each filter left out, over the whole run."""
    prefix = "rollout/groups_dropped/"
    counts = {name.removeprefix(prefix): sum(values(record.rows, name)) for name in record.names(prefix)}
    return [Fact(reason, f"{count:g}") for reason, count in sorted(counts.items(), key=lambda item: -item[1])]


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _read_json(path: Path, default: Any) -> Any:
    return json.loads(text) if (text := _read_text(path)) else default
