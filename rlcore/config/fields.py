"""The schema looked at from outside: which sections and keys exist, and what a misspelt one may mean."""

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from rlcore.config.schema import Recipe
from rlcore.config.section import Section


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """Yield the sections that a field of this type can hold, itself or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from sections_in(argument)


def sections_at(keys: Sequence[str]) -> list[type[Section]]:
    """Return the sections that a key path leads to: none for a value or an unknown key."""
    here: list[type[Section]] = [Recipe]
    for key in keys:
        if key.isdecimal():
            continue
        fields = [section.model_fields[key] for section in here if key in section.model_fields]
        here = [below for field in fields for below in sections_in(field.annotation)]
    return here


def keys_at(keys: Sequence[str]) -> list[str]:
    """Return the keys that may stand at a place of the recipe."""
    return list(dict.fromkeys(key for section in sections_at(keys) for key in section.model_fields))


def all_keys(section: type[Section] = Recipe, prefix: str = "") -> Iterator[str]:
    """Yield every key path of the schema, items of lists without their index."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for below in sections_in(field.annotation):
            yield from all_keys(below, f"{prefix}{name}.")


def closest(name: str, candidates: Iterable[str]) -> str:
    """Return the candidate that `name` most likely means, or an empty text."""
    return next(iter(get_close_matches(name, list(candidates), n=1, cutoff=0.6)), "")


def suggest(name: str, candidates: Sequence[str]) -> str:
    """Say what would work in the place of an unknown name."""
    if match := closest(name, candidates):
        return f"did you mean {match!r}?"
    return f"one of {', '.join(candidates)}" if candidates else ""


def suggest_key(keys: Sequence[str], name: str) -> str:
    """Say what an unknown key of the recipe may mean, here or in another section."""
    here = keys_at(keys)
    if match := closest(name, here):
        return f"did you mean {match!r}?"
    if elsewhere := [path for path in all_keys() if path.rpartition(".")[2] == name]:
        return f"it belongs to {' or '.join(dict.fromkeys(elsewhere))}"
    return f"one of {', '.join(here)}"
