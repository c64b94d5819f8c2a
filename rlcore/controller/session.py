"""What every run has while it goes on, warm start and reinforcement alike: folder, clock, watchdog, terminal,
checkpoints, and the rule for endings: save what is done, then say how to go on.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcore.config.schema import Recipe
from rlcore.controller.checkpoints import CheckpointStore, RunState
from rlcore.controller.model_folder import save_model
from rlcore.controller.policy import Policy
from rlcore.errors import RlcoreError
from rlcore.telemetry.memory import MemoryMeter
from rlcore.telemetry.metrics import evaluation_names, read_metrics
from rlcore.telemetry.notices import noticed
from rlcore.telemetry.progress import Progress
from rlcore.telemetry.run_folder import RunFolder
from rlcore.telemetry.summary import iteration_seconds
from rlcore.telemetry.timing import PhaseTimer
from rlcore.telemetry.watchdog import Watchdog


@dataclass
class Session:
    """A run in progress. `done` counts finished steps; `source` is the prompt source's state after them.

    While `ahead` the weights may be ahead of `done`, and no checkpoint can be made of them.
    """

    recipe: Recipe
    folder: RunFolder
    checkpoints: CheckpointStore
    progress: Progress
    timer: PhaseTimer
    watchdog: Watchdog
    memory: MemoryMeter
    policy: Policy
    done: int
    source: Mapping[str, Any]
    ahead: bool = False

    @contextmanager
    def changing_weights(self) -> Iterator[None]:
        """The body takes an optimizer step; it raises RlcoreError only before any weight has changed."""
        before, self.ahead = self.ahead, True
        try:
            yield
        except RlcoreError:
            self.ahead = before
            raise

    def end_step(self, metrics: Mapping[str, Any], source: Mapping[str, Any]) -> None:
        """The step is done as far as weights and prompts go; nothing is awaited between training and this."""
        self.done += 1
        self.source = source
        self.ahead = False
        row = {**metrics, **self.timer.end_step(), "memory/peak_rss_gb": self.memory.peak_gb()}
        if tokens := row.get("tokens/generated", row.get("tokens")):
            row["tokens/per_second"] = tokens / iteration_seconds(row)
        self.folder.metrics.append(self.done, row)
        self.progress.step({"step": self.done, **row})
        with self.timer("checkpoint"):
            self._record(self.checkpoints.poll())
            if self.checkpoints.due(self.done):
                self._record(self.checkpoints.begin(self._state()))
            if (every := self.recipe.checkpoints.hf_every) and self.done % every == 0:
                save_model(self.policy, self.recipe, self.folder.path / f"hf-{self.done:06d}")

    def is_evaluated(self, sets: Iterable[str]) -> bool:
        """Whether an attempt of this run has already measured these sets after the steps done so far."""
        rows = [row for row in read_metrics(self.folder.paths.metrics) if row["step"] == self.done]
        return set(sets) <= set(evaluation_names(rows))

    def evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Record an evaluation of the weights after the steps done so far."""
        self.folder.metrics.append(self.done, metrics)
        self.progress.evaluation({"step": self.done, **metrics})

    def save(self) -> None:
        """Write a checkpoint of the last finished step, unless it is there already."""
        with self.timer("checkpoint"):
            self._record(self.checkpoints.save(self._state()))

    def finish_saving(self) -> None:
        """Wait for a checkpoint that is still being written."""
        with self.timer("checkpoint"):
            self._record(self.checkpoints.finish())

    def _state(self) -> RunState:
        return RunState(self.done, self.source)

    def _record(self, published: Iterable[Path]) -> None:
        for place in published:
            self.folder.events.record("checkpoint", path=place.name)


@contextmanager
def open_session(
    recipe: Recipe,
    folder: RunFolder,
    total_steps: int,
    state: RunState,
    policy: Policy,
    *,
    quiet: bool,
) -> Iterator[Session]:
    """Run the body with progress, watchdog and memory meter; however it ends, save the last finished step."""
    paths = folder.paths
    records = [paths.config, paths.plugins]
    checkpoints = CheckpointStore(paths.checkpoints, recipe.checkpoints, policy, records)
    policy.group.log_to(paths.logs)
    with (
        folder,
        Progress(total_steps, recipe.name, first_step=state.step, quiet=quiet) as progress,
        noticed(folder.events, progress.note),
        MemoryMeter() as memory,
        Watchdog(
            folder.events,
            paths.logs,
            recipe.telemetry.stall_after,
            progress.note,
            ranks=policy.group,
            end_after=recipe.telemetry.end_stalled_after,
        ) as watchdog,
    ):
        timer = PhaseTimer(watchdog.enter)
        session = Session(
            recipe, folder, checkpoints, progress, timer, watchdog, memory, policy, state.step, state.source
        )
        try:
            yield session
        finally:
            if policy.alive:
                session.finish_saving()
                # Before the first step there is nothing that a new start would not make again.
                if session.done > state.step and not session.ahead:
                    session.save()
