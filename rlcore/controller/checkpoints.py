"""Checkpoints of a run: trainer, prompt source and counters as one unit that is either whole or absent.

A checkpoint is written beside its place and moved there at the end, so that a reader never sees half of it.
What the trainer's part looks like inside is the trainer's business.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from rlcore.config.schema import Checkpoints as Settings
from rlcore.controller.manifest import damage, to_disk, write_manifest
from rlcore.errors import RlcoreError, fail

STATE = "state.json"
TRAINER = "trainer"
_UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class RunState:
    """What a run needs, besides the trainer's own state, to go on as if it had never stopped.

    `step` counts finished steps and is the weight version too; `source` is the prompt source's state, the
    partial rollouts that wait to be resumed included.
    """

    step: int
    source: Mapping[str, Any]


class Saver(Protocol):
    """Who writes the trainer's part; `rlcore.controller.policy.Policy` is one."""

    def save(self, folder: Path) -> None: ...
    def start_saving(self, folder: Path) -> None: ...
    def is_saving(self) -> bool: ...
    def finish_saving(self) -> None: ...


class CheckpointStore:
    """The checkpoints of one run folder, by step. `records` are files of the run that each one has a copy of.

    Every method that writes raises RlcoreError where that fails; all earlier checkpoints are then as they were,
    and nothing is left of the failed one.
    """

    def __init__(self, folder: Path, settings: Settings, saver: Saver, records: Sequence[Path] = ()) -> None:
        self.folder = folder
        self._settings = settings
        self._saver = saver
        self._records = records
        self._begun: int | None = None
        self._pending: Path | None = None

    def due(self, step: int) -> bool:
        """Whether the recipe asks for a checkpoint after this step."""
        every = self._settings.every
        return every is not None and step % every == 0

    def begin(self, state: RunState) -> list[Path]:
        """Save a step as the recipe says, perhaps in the background; return what was published by now."""
        if not self._settings.asynchronous:
            return self.save(state)
        published = self.finish()
        if state.step != self._begun:
            self._pending = self._write(state, self._saver.start_saving)
        return published

    def save(self, state: RunState) -> list[Path]:
        """Write a checkpoint and publish it, after one that is still being written; a step is saved once.

        A checkpoint of this step that an earlier attempt left gives way: a resume passed over it as damaged.
        """
        published = self.finish()
        if state.step == self._begun:
            return published
        return [*published, self._publish(self._write(state, self._saver.save))]

    def poll(self) -> list[Path]:
        """Publish what was written in the background, if it is all there by now."""
        return [] if self._pending and self._saver.is_saving() else self.finish()

    def finish(self) -> list[Path]:
        """Wait for what is being written in the background, and publish it."""
        if self._pending is None:
            return []
        draft, self._pending = self._pending, None
        with self._given_up_if_it_fails(draft):
            self._saver.finish_saving()
        return [self._publish(draft)]

    def _write(self, state: RunState, write_trainer: Callable[[Path], None]) -> Path:
        """Write all that the controller knows, and have the trainer write its part, or begin to."""
        self._begun = state.step
        draft = self.folder / f"step-{state.step:06d}{_UNFINISHED}"
        with self._given_up_if_it_fails(draft):
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            for record in self._records:
                shutil.copy(record, draft)
            (draft / STATE).write_text(json.dumps(asdict(state)))
            write_trainer(draft / TRAINER)
        return draft

    def _publish(self, draft: Path) -> Path:
        place = draft.with_name(draft.name.removesuffix(_UNFINISHED))
        with self._given_up_if_it_fails(draft):
            write_manifest(draft)
            shutil.rmtree(place, ignore_errors=True)
            os.replace(draft, place)
            to_disk(self.folder)
        self._prune(place)
        return place

    @contextmanager
    def _given_up_if_it_fails(self, draft: Path) -> Iterator[None]:
        """Leave nothing of a draft that cannot be finished: it may be what fills the disk."""
        try:
            yield
        except BaseException as error:
            shutil.rmtree(draft, ignore_errors=True)
            if isinstance(error, OSError):
                message, remedy = f"could not be written: {error}", "make room, or mend the folder; then resume"
                raise fail(f"checkpoint {draft}", message, remedy) from error
            if not isinstance(error, RlcoreError):
                # Interrupted: nothing speaks against another attempt.
                self._begun = None
            raise

    def _prune(self, newest: Path) -> None:
        """Remove what need not be kept: old checkpoints, drafts of attempts that died, and what is ahead.

        Checkpoints ahead of the newest are damaged, or a resume would not have gone back behind them.
        """
        places = sorted(self.folder.glob("step-*"))
        drafts = [place for place in places if place.name.endswith(_UNFINISHED)]
        ahead = [place for place in places if place.name > newest.name and place not in drafts]
        complete = [place for place in places if place.name <= newest.name and place not in drafts]
        old = [place for place in complete[: -self._settings.keep_last] if not self._for_good(place)]
        for place in drafts + ahead + old:
            shutil.rmtree(place)

    def _for_good(self, place: Path) -> bool:
        every = self._settings.keep_every
        return every is not None and int(place.name.removeprefix("step-")) % every == 0


def newest_checkpoint(folder: Path) -> tuple[tuple[Path, RunState] | None, list[str]]:
    """The newest complete checkpoint in a folder, if any, and a sentence for each newer one skipped."""
    skipped: list[str] = []
    for place in sorted(folder.glob("step-*"), reverse=True):
        if place.name.endswith(_UNFINISHED):
            skipped.append(f"{place.name} was never finished")
        elif reason := damage(place):
            skipped.append(f"{place.name} is damaged: {reason}")
        else:
            return (place, RunState(**json.loads((place / STATE).read_text()))), skipped
    return None, skipped
