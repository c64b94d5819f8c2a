"""What a person sees while a run goes on: one aligned line a step, and on a terminal a live bar below.

Without a terminal (logs of a CI job) the same numbers come as `name value` pairs, one line a step, and
the state of a long rollout at most twice a minute.
"""

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from rlcore.telemetry.metrics import EVALUATION
from rlcore.telemetry.units import duration, number, percent

# The most telling first: a narrow terminal shows only as many as fit.
COLUMNS: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "reward/mean": ("reward", number),
    "pass_rate": ("pass", percent),
    "loss": ("loss", number),
    "kl": ("KL", number),
    "entropy": ("entropy", number),
    "response/length_mean": ("length", number),
    "tokens/per_second": ("tok/s", number),
    "logprob_gap/max": ("gap", number),
    "time/step": ("time", duration),
    "grad_norm": ("grad", number),
}
STEP_WIDTH, WIDTH = 6, 9
HEADER_EVERY = 25
PLAIN_STATUS_EVERY = 30.0


class Progress:
    """Reports steps as they end and, between them, what the run is doing.

    `first_step` is the number of steps already done when the run was resumed. With `quiet` only notes are
    printed.
    """

    def __init__(
        self,
        total_steps: int,
        title: str,
        *,
        first_step: int = 0,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console()
        self._live = self._console.is_terminal and not quiet
        self._quiet = quiet
        self._total = total_steps
        self._first = first_step
        self._clock = clock
        self._began = self._spoke = clock()
        self._lines = 0
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[left]}  {task.fields[doing]}"),
            console=self._console,
            transient=True,
            disable=not self._live,
        )
        self._task = self._bar.add_task(title, total=total_steps, completed=first_step, left="", doing="")
        self._bar.start()

    def step(self, row: Mapping[str, Any]) -> None:
        """A step has ended; `row` holds `step` (counted from 1) and its metrics."""
        left = self._time_left(row["step"])
        self._bar.update(self._task, completed=row["step"], left=f"{left} left", doing="")
        if self._live:
            self._print_table_line(row)
        else:
            cells = [f"{title} {cell}" for title, cell in _cells(row)]
            self._say("  ".join([f"step {row['step']}/{self._total}", *cells, time_split(row), f"left {left}"]))

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """An evaluation has ended; `row` holds `step` and `eval/<name>/<metric>` values."""
        scores = [
            f"{name.removeprefix(EVALUATION)} {percent(row[name]) if 'pass@' in name else number(row[name])}"
            for name in row
            if name.startswith(EVALUATION)
        ]
        self._say(f"evaluation at step {row['step']}:  " + "  ".join(scores), style="bold green")

    def status(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """What the run is doing now, such as `status("rollout", 312, 512)`; may be called very often."""
        doing = text if done is None else f"{text} {done}" + (f"/{total}" if total else "")
        self._bar.update(self._task, doing=doing)
        if not self._live and self._clock() - self._spoke >= PLAIN_STATUS_EVERY:
            self._say(doing)

    def note(self, text: str) -> None:
        """A warning or a message that stays on the screen, also in quiet mode."""
        self._console.print(Text(text, style="yellow"), soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _say(self, text: str, style: str = "") -> None:
        self._spoke = self._clock()
        if not self._quiet:
            self._console.print(Text(text, style=style if self._live else ""), soft_wrap=True)

    def _print_table_line(self, row: Mapping[str, Any]) -> None:
        room = self._console.width - STEP_WIDTH
        cells = _cells(row)[: room // WIDTH]
        split = time_split(row)
        if self._lines % HEADER_EVERY == 0:
            self._say(
                f"{'step':>{STEP_WIDTH}}" + "".join(f"{title:>{WIDTH}}" for title, _ in cells), style="dim"
            )
        self._lines += 1
        line = f"{row['step']:>{STEP_WIDTH}}" + "".join(f"{cell:>{WIDTH}}" for _, cell in cells)
        self._say(f"{line}  {split}" if len(line) + len(split) + 2 <= self._console.width else line)

    def _time_left(self, step: int) -> str:
        done = max(step - self._first, 1)
        return duration((self._clock() - self._began) / done * max(self._total - step, 0))


def _cells(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Title and text of every column that the row measured."""
    return [(title, text(row[name])) for name, (title, text) in COLUMNS.items() if row.get(name) is not None]


def time_split(row: Mapping[str, Any]) -> str:
    """The phases of a step by share, such as `rollout 61 % train 30 % other 9 %`, largest first."""
    phases = {name.removeprefix("time/"): row[name] for name in row if name.startswith("time/")}
    whole = phases.pop("step", 0.0)
    shares = sorted(((seconds / whole, phase) for phase, seconds in phases.items() if whole), reverse=True)
    return " ".join(f"{phase} {share:.0%}" for share, phase in shares if share >= 0.005)
