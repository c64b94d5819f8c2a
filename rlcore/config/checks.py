"""What a sound recipe asks for, checked against this machine: plugins, checkpoint, files, native settings.

It imports the plugins that the recipe names, and nothing heavy. Parallel layouts are `rlcore.layout`'s.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlcore.config.checkpoint import is_here, missing_weights, read_architecture
from rlcore.config.fields import suggest
from rlcore.config.load import LoadedRecipe, in_reading_order
from rlcore.config.native import megatron_problems
from rlcore.config.rules import unfitting_groups
from rlcore.config.schema import Dataset, Recipe, RewardsByMetadata, ServerGroups, Use
from rlcore.config.served_models import model_problems
from rlcore.config.sglang_arguments import Arguments, known_arguments, serving_arguments
from rlcore.config.tree import parse
from rlcore.config.validation import place_of
from rlcore.errors import Problem, RlcoreError
from rlcore.registry import Catalog

_SLICE = re.compile(r"@\[-?\d*:-?\d*\]$")


@dataclass(frozen=True)
class Selection:
    """A plugin that a recipe names, and the key that names it."""

    key: str
    kind: str
    name: str
    options: Mapping[str, Any]
    options_key: str = ""


def check(loaded: LoadedRecipe, catalog: Catalog) -> list[Problem]:
    """Return every problem of a recipe, those that were found while loading included.

    Data and other weights may be missing where the checkpoint is too: such a recipe is run elsewhere.
    """
    problems = [*_plugin_problems(loaded, catalog), *_model_problems(loaded.recipe, catalog)]
    problems += native_problems(loaded.recipe)
    problems += operator_file_problems(loaded.recipe)
    if is_here(loaded.recipe.model.checkpoint):
        problems += [*missing_data(loaded.recipe), *missing_checkpoints(loaded.recipe)]
    fresh = [located(loaded, found) for found in problems if not loaded.is_broken(found.place)]
    return in_reading_order([*loaded.problems, *fresh])


def located(loaded: LoadedRecipe, problem: Problem) -> Problem:
    """Give a problem whose place is a key of the recipe the file and line of that key."""
    if problem.place.split(".")[0] in Recipe.model_fields:
        return replace(problem, place=loaded.place(problem.place))
    return problem


def selections(recipe: Recipe) -> Iterator[Selection]:
    """Yield every plugin that a recipe names outright; the model's follow from its checkpoint."""
    if isinstance(recipe.rewards, RewardsByMetadata):
        for name, options in recipe.rewards.allowed.items():
            yield Selection(f"rewards.allowed.{name}", "reward", name, options, f"rewards.allowed.{name}")
    else:
        for index, reward in enumerate(recipe.rewards):
            yield _selected(f"rewards.{index}", "reward", reward)
    for index, reward in enumerate(recipe.eval.rewards or []):
        yield _selected(f"eval.rewards.{index}", "reward", reward)
    for index, chosen in enumerate(recipe.filters):
        yield _selected(f"filters.{index}", "sampling_filter", chosen)
    yield _selected("advantage", "advantage_estimator", recipe.advantage)
    if recipe.loss:
        yield _selected("loss", "policy_loss", recipe.loss)
    for index, name in enumerate(recipe.layout_validators):
        yield Selection(f"layout_validators.{index}", "layout_validator", name, {})


def _selected(key: str, kind: str, chosen: Use) -> Selection:
    return Selection(key, kind, chosen.use, chosen.options, f"{key}.options")


def model_selections(recipe: Recipe, catalog: Catalog) -> list[Selection]:
    """Return the plugins of the model; raises RlcoreError if its checkpoint does not say what it is."""
    architecture = read_architecture(recipe.model.checkpoint, recipe.model.overrides, catalog)
    name = recipe.model.plugin or architecture.hf_config["model_type"]
    key = "model.plugin" if recipe.model.plugin else "model.checkpoint"
    return [Selection(key, kind, name, {}) for kind in ("model_spec", "weight_bridge", "layout_validator")]


def _plugin_problems(loaded: LoadedRecipe, catalog: Catalog) -> Iterator[Problem]:
    try:
        catalog.required()
    except RlcoreError as error:
        yield from error.problems
    for selection in selections(loaded.recipe):
        if loaded.is_broken(selection.key):
            continue
        try:
            plugin = catalog.load(selection.kind, selection.name, selection.key)
            if selection.options_key:
                plugin.parse_options(selection.options, selection.options_key)
        except RlcoreError as error:
            yield from error.problems


def _model_problems(recipe: Recipe, catalog: Catalog) -> Iterator[Problem]:
    try:
        spec, *others = model_selections(recipe, catalog)
        catalog.load(spec.kind, spec.name, spec.key)
        for selection in others:
            catalog.find(selection.kind, selection.name, selection.key)
    except RlcoreError as error:
        yield from error.problems


def missing_data(recipe: Recipe) -> list[Problem]:
    """Return a problem for every file of rows that is not on this machine, or is empty."""
    datasets: dict[str, Dataset | None] = {
        "data": recipe.data,
        "sft.data": recipe.sft.data if recipe.sft else None,
    }
    datasets |= {f"eval.datasets.{index}": dataset for index, dataset in enumerate(recipe.eval.datasets)}
    return [
        problem
        for key, dataset in datasets.items()
        if dataset
        for problem in _file_problems(f"{key}.path", Path(_SLICE.sub("", str(dataset.path))))
    ]


def missing_checkpoints(recipe: Recipe) -> Iterator[Problem]:
    """Check the checkpoints beside the model's own that training reads."""
    load, reference = recipe.model.load, recipe.algorithm.kl.reference
    served = recipe.rollout.checkpoint if recipe.rollout.engine == "sglang" else None
    if served and not is_here(served):
        remedy = f"a path relative to {Path.cwd()}, or an absolute one: trainer and servers read its files"
        yield Problem("rollout.checkpoint", f"there is no folder {served!r} on this machine", remedy)
    if load:
        yield from missing_weights("model.load", load, torch_dist_only=True)
    if reference:
        yield from missing_weights("algorithm.kl.reference", Path(reference), torch_dist_only=False)


def operator_file_problems(recipe: Recipe) -> list[Problem]:
    """Check the files that describe machines and servers."""
    sglang = recipe.rollout.sglang
    files = {
        "cluster.hostfile": recipe.cluster.hostfile,
        "rollout.sglang.python": sglang.python,
        "rollout.sglang.config": sglang.config if isinstance(sglang.config, Path) else None,
    }
    return [problem for key, file in files.items() if file for problem in _file_problems(key, file)]


def _file_problems(key: str, path: Path) -> Iterator[Problem]:
    path = path.expanduser()
    if not path.is_file():
        siblings = sorted(str(file) for file in path.parent.glob("*") if file.is_file())
        hint = suggest(str(path), siblings) if siblings else ""
        remedy = hint if hint.startswith("did") else f"a path relative to {Path.cwd()}, or an absolute one"
        yield Problem(key, f"there is no file {str(path)!r}", remedy)
    elif path.stat().st_size == 0:
        yield Problem(key, f"{str(path)!r} is empty", "at least one row")


def native_problems(recipe: Recipe) -> Iterator[Problem]:
    """Check what passes through to Megatron and to SGLang."""
    yield from megatron_problems(recipe.megatron)
    try:
        arguments = _sglang_arguments(recipe)
    except RlcoreError as error:
        yield from error.problems
        return
    yield from arguments.problems("rollout.sglang.args", recipe.rollout.sglang.args)
    try:
        groups = server_groups(recipe)
    except RlcoreError as error:
        yield from error.problems
        return
    if groups:
        yield from _served_problems(recipe, groups, arguments)


def _served_problems(recipe: Recipe, groups: ServerGroups, arguments: Arguments) -> Iterator[Problem]:
    """Check the models and groups that servers are of, in the recipe or in a file of their own."""
    shared = recipe.rollout.sglang.args
    yield from model_problems(recipe, groups.sglang)
    if isinstance(recipe.rollout.sglang.config, Path):
        for found in unfitting_groups(recipe, groups):
            yield Problem(found.keys[0], found.message, found.remedy)
    for m, model in enumerate(groups.sglang):
        for g, group in enumerate(model.server_groups):
            key = f"rollout.sglang.config.sglang.{m}.server_groups.{g}.overrides"
            inherited = _only_dp(shared) if "dp_size" in group.overrides else {}
            yield from arguments.problems(key, {**inherited, **group.overrides})


def _sglang_arguments(recipe: Recipe) -> Arguments:
    """What servers take. Only a recipe that launches some is worth the seconds that SGLang takes to say it."""
    sglang, python = recipe.rollout.sglang, recipe.rollout.sglang.python
    launches = recipe.rollout.engine == "sglang" and not sglang.urls
    if not launches or (python and not python.expanduser().is_file()):
        return known_arguments()
    return serving_arguments(python)


def _only_dp(args: Mapping[str, Any]) -> dict[str, Any]:
    """What a group's dp_size is judged with, from the arguments that all groups share."""
    return {"enable_dp_attention": True} if args.get("enable_dp_attention") else {}


def server_groups(recipe: Recipe) -> ServerGroups | None:
    """Return the server groups, read from their file where the recipe names one."""
    config = recipe.rollout.sglang.config
    if not isinstance(config, Path) or not config.is_file():
        return config if isinstance(config, ServerGroups) else None
    tree = parse(config.read_text(encoding="utf-8"), lambda line: f"{config}:{line}")
    try:
        return ServerGroups.model_validate(tree.plain(), strict=True)
    except ValidationError as error:
        raise RlcoreError(
            Problem(place_of(tree, [str(key) for key in found["loc"]]), found["msg"])
            for found in error.errors(include_url=False)
        ) from None
