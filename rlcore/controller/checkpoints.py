"""Checkpoints of a run: trainer, prompt source and counters as one unit that is either whole or absent.

A checkpoint is written beside its place and moved there at the end, so that a reader never sees half of it.
What the trainer's part looks like inside is the trainer's business.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlcore.config.schema import Checkpoints as Settings

STATE = "state.json"
TRAINER = "trainer"
_UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class RunState:
    """What a run needs, besides the trainer's own state, to go on as if it had never stopped.

    `step` counts finished steps and is the weight version too; `source` is the prompt source's state.
    """

    step: int
    source: Mapping[str, Any]


class CheckpointStore:
    """The checkpoints of one run folder, by step."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self._settings = settings
        self._saved: int | None = None

    def due(self, step: int) -> bool:
        """Whether the recipe asks for a checkpoint after this step."""
        every = self._settings.every
        return every is not None and step % every == 0

    def save(self, state: RunState, write_trainer: Callable[[Path], None]) -> Path | None:
        """Write a checkpoint, publish it, and remove what need not be kept; None if the step is saved already.

        A checkpoint of this step that an earlier attempt left gives way: a resume passed over it as damaged.
        """
        if state.step == self._saved:
            return None
        place = self.folder / f"step-{state.step:06d}"
        draft = place.with_name(place.name + _UNFINISHED)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        write_trainer(draft / TRAINER)
        (draft / STATE).write_text(json.dumps(asdict(state)))
        _flush_to_disk(draft)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(draft, place)
        self._saved = state.step
        self._prune()
        return place

    def _prune(self) -> None:
        complete = sorted(place for place in self.folder.glob("step-*") if not place.name.endswith(_UNFINISHED))
        for place in complete[: -self._settings.keep_last]:
            for_good = self._settings.keep_every
            if for_good is None or int(place.name.removeprefix("step-")) % for_good:
                shutil.rmtree(place)


def newest_checkpoint(folder: Path) -> tuple[tuple[Path, RunState] | None, list[str]]:
    """The newest complete checkpoint in a folder, if any, and a sentence for each newer one skipped."""
    skipped: list[str] = []
    for place in sorted(folder.glob("step-*"), reverse=True):
        if place.name.endswith(_UNFINISHED):
            skipped.append(f"{place.name} was never finished")
            continue
        try:
            return (place, RunState(**json.loads((place / STATE).read_text()))), skipped
        except (OSError, ValueError, TypeError) as error:
            skipped.append(f"{place.name} is damaged: {error}")
    return None, skipped


def _flush_to_disk(folder: Path) -> None:
    """Ask the system to write every file now: a rename must not reach the disk before what it publishes."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
