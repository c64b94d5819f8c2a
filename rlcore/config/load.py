"""Recipes from disk: finds them, lays their bases under them, applies `--set`, and validates the whole.

A recipe is a file, or the name of one that an installed plugin ships. What its plugins, files and layout
amount to is judged elsewhere (`rlcore.config.checks`).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlcore.config import dump
from rlcore.config.fields import suggest
from rlcore.config.rules import violations
from rlcore.config.schema import Recipe
from rlcore.config.tree import Node, assign, merge, parse
from rlcore.config.validation import place_of, validate
from rlcore.errors import Problem, RlcoreError, fail, raise_if_any
from rlcore.registry.catalog import Catalog
from rlcore.registry.resources import recipes


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that knows where each of its values was written.

    `problems` is empty unless it comes from `read_recipe`; `broken` then names the keys that were left out.
    """

    recipe: Recipe
    tree: Node
    problems: tuple[Problem, ...] = ()
    broken: frozenset[str] = frozenset()

    def source(self, key: str) -> str:
        """Name the file and line, or the `--set`, that wrote a key or what holds it."""
        *_, nearest = self.tree.along(key.split("."))
        return nearest.place

    def place(self, key: str) -> str:
        """Name a key as messages do: `FILE:LINE (a.b.c)`."""
        return place_of(self.tree, key.split("."))

    def is_broken(self, key: str) -> bool:
        """Whether a key, what holds it, or a part of it was left out."""
        return any(f"{key}.".startswith(f"{b}.") or f"{b}.".startswith(f"{key}.") for b in self.broken)

    def dump(self, *, defaults: bool = True) -> str:
        """Write the resolved recipe as YAML, each line with its source; it loads back to an equal recipe."""
        return dump.dump(self.recipe, self.tree, defaults=defaults)


def load_recipe(ref: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load a recipe by file or shipped name; raises RlcoreError with every problem of its text."""
    loaded = read_recipe(ref, overrides)
    raise_if_any(loaded.problems)
    return loaded


def read_recipe(ref: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load what is sound of a recipe, with the problems of the rest, so that more can be checked at once.

    Raises RlcoreError where there is no recipe to speak of: no file, no YAML, no model.
    """
    shipped = {recipe.name: recipe.path for recipe in recipes(Catalog.installed().resources())}
    tree = _composed(find_recipe(ref, shipped), shipped, ())
    for override in overrides:
        tree = overridden(tree, override)
    recipe, problems, broken = validate(tree)
    if recipe is None:
        raise RlcoreError(in_reading_order(problems))
    loaded = LoadedRecipe(recipe, tree, (), broken)
    problems += [
        Problem(loaded.place(found.keys[0]), found.message, found.remedy)
        for found in violations(recipe)
        if not any(map(loaded.is_broken, found.keys))
    ]
    return LoadedRecipe(recipe, tree, tuple(in_reading_order(problems)), broken)


def in_reading_order(problems: Iterable[Problem]) -> list[Problem]:
    """Sort problems by file and line."""

    def position(problem: Problem) -> tuple[str, int]:
        match = re.match(r"(.*?):(\d+)", problem.place)
        return (match[1], int(match[2])) if match else (problem.place, 0)

    return sorted(problems, key=position)


def find_recipe(ref: str, shipped: Mapping[str, Path], place: str = "recipe", near: Path = Path()) -> Path:
    """Return the file that a reference means: a path (relative to `near`), or a shipped recipe's name."""
    path = near / ref
    if path.is_file():
        return path
    if ref in shipped:
        return shipped[ref]
    if path.suffix in (".yaml", ".yml"):
        known = [*_yaml_files(path.parent), *shipped]
        raise fail(place, f"there is no file {str(path)!r}", suggest(str(path), known))
    raise fail(place, f"no installed plugin ships a recipe {ref!r}", suggest(ref, list(shipped)))


def _yaml_files(folder: Path) -> list[str]:
    return [str(file) for file in sorted(folder.glob("*.y*ml"))] if folder.is_dir() else []


def _composed(file: Path, shipped: Mapping[str, Path], above: tuple[Path, ...]) -> Node:
    """Read a recipe and lay it over its bases, the later ones over the earlier."""
    if file.resolve() in above:
        chain = " → ".join(path.name for path in (*above, file))
        raise fail(str(file), f"recipes that are their own base: {chain}", "take one of the bases out")
    tree = _read(file)
    assert isinstance(tree.value, dict)
    own = Node({key: child for key, child in tree.value.items() if key != "base"}, tree.place)
    composed: Node | None = None
    for base in _bases(tree.child("base")):
        found = find_recipe(str(base.value), shipped, f"{base.place} (base)", file.parent)
        below = _composed(found, shipped, (*above, file.resolve()))
        composed = merge(composed, below) if composed else below
    return merge(composed, own) if composed else own


def _bases(base: Node | None) -> list[Node]:
    if base is None:
        return []
    bases = base.value if isinstance(base.value, list) else [base]
    for one in bases:
        if not isinstance(one.value, str):
            raise fail(f"{one.place} (base)", "a base is a recipe's name or file", "base: [NAME, ./FILE.yaml]")
    return bases


def _read(file: Path) -> Node:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise fail(str(file), f"cannot be read: {error}", "a text file in UTF-8") from None
    tree = parse(text, _lines_of(file))
    if not isinstance(tree.value, dict):
        raise fail(tree.place, "a recipe is a mapping of keys", "model: {checkpoint: …}")
    return tree


def _lines_of(file: Path) -> Callable[[int], str]:
    full, here = file.resolve(), Path.cwd()
    shown = full.relative_to(here) if full.is_relative_to(here) else file
    return lambda line: f"{shown}:{line}"


def overridden(tree: Node, override: str) -> Node:
    """Apply one `a.b=v`, whose value is YAML."""
    key, equals, text = override.partition("=")
    place = f"--set {key}=…" if key.startswith("cluster.env.") else f"--set {override}"
    if not equals or not all(key.split(".")):
        raise fail(place, "expected KEY=VALUE", "--set train.steps=100")
    value = parse(text, lambda _: place)
    return assign(tree, key.split("."), value)
