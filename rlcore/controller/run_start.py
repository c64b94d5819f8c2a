"""How a run begins: a new folder with recipe and plugin lock, or an old one that goes on where it stopped."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcore.config.load import LoadedRecipe, load_recipe
from rlcore.config.schema import Recipe
from rlcore.controller.checkpoints import TRAINER, RunState, newest_checkpoint
from rlcore.errors import raise_if_any
from rlcore.registry import lock
from rlcore.registry.loading import Plugin
from rlcore.telemetry.run_folder import RunFolder, RunPaths


@dataclass(frozen=True)
class RunPlace:
    """Where a run is written, and whether it goes on with what is there."""

    path: Path
    resume: bool = False
    accept_plugin_changes: bool = False

    @property
    def staging(self) -> Path:
        """Where logs lie until there is a run folder: beside it, as files move while they are written."""
        return self.path.with_name(f".{self.path.name}.starting")


def start(plugins: Iterable[Plugin], place: RunPlace) -> RunFolder:
    """Make or reopen the run folder.

    Raises RlcoreError, before anything is written, if the folder is taken or if a plugin is not the one that
    the run was made with.
    """
    paths = RunPaths(place.path)
    if place.resume and not place.accept_plugin_changes and paths.plugins.is_file():
        raise_if_any(lock.verify(paths.plugins, lock.make(plugins)))
    return RunFolder.create(place.path, resume=place.resume)


def record(folder: RunFolder, loaded: LoadedRecipe, plugins: Iterable[Plugin]) -> None:
    """Keep the resolved recipe and the plugin lock, once all is there that the run begins with.

    Says in which keys the recipe differs from the one that the run had before.
    """
    if changed := recipe_changes(folder.paths.config, loaded.recipe):
        print(f"the recipe has changed since the run began: {', '.join(changed)}")
        folder.events.record("recipe-changed", keys=changed)
    folder.write_config(loaded.dump())
    lock.write(folder.paths.plugins, lock.make(plugins))


def restore(
    folder: RunFolder, place: RunPlace, fresh: RunState, load_trainer: Callable[[Path], bool]
) -> RunState:
    """Load the newest complete checkpoint of a resumed run, and say what was skipped.

    A new run, and one that ended before its first checkpoint, begins with `fresh`.
    """
    if not place.resume:
        return fresh
    found, skipped = newest_checkpoint(folder.paths.checkpoints)
    for reason in skipped:
        print(f"skipped checkpoint: {reason}")
    if found is None:
        print("no checkpoint was saved yet: starting from the beginning")
        return fresh
    checkpoint, state = found
    print(f"resuming after step {state.step} from {checkpoint}")
    if not load_trainer(checkpoint / TRAINER):
        print("the layout is another one: trainer ranks draw random numbers anew, from seed and step")
    folder.events.record("resume", step=state.step, checkpoint=checkpoint.name, skipped=skipped)
    return state


def recipe_changes(written: Path, recipe: Recipe) -> list[str]:
    """The keys whose values differ between a run's resolved recipe on disk and `recipe`."""
    if not written.is_file():
        return []
    old = dict(_leaves(load_recipe(str(written)).recipe.model_dump()))
    new = dict(_leaves(recipe.model_dump()))
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
