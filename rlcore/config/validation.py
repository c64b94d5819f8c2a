"""From a tree to a Recipe: every violation of the schema as a Problem with its line, value and remedy.

Broken keys are then taken out, so that the checks that follow can still judge the rest of the recipe.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rlcore.config.fields import keys_at, sections_at, suggest, suggest_key
from rlcore.config.schema import Recipe
from rlcore.config.tree import Node
from rlcore.errors import Problem

Keys = tuple[str, ...]


def place_of(tree: Node, keys: Sequence[str]) -> str:
    """Name a key and the nearest line that sets it or what holds it: `FILE:LINE (a.b.c)`."""
    *_, nearest = tree.along(keys)
    return f"{nearest.place} ({'.'.join(keys)})" if keys else nearest.place


def validate(tree: Node) -> tuple[Recipe | None, list[Problem], frozenset[str]]:
    """Check a tree against the schema.

    Returns the recipe (made of the sound keys; None where too little is left), every problem, and the
    keys that were taken out.
    """
    try:
        return _model(tree.plain()), [], frozenset()
    except ValidationError as error:
        details = error.errors(include_url=False)
    problems = [_problem(tree, detail) for detail in details]
    recipe, broken = _sound_part(tree.plain(), details)
    return recipe, problems, frozenset(".".join(keys) for keys in broken)


def _sound_part(plain: Any, details: Sequence[ErrorDetails]) -> tuple[Recipe | None, set[Keys]]:
    """Take broken keys out until the rest is valid; taking one out can leave what holds it incomplete."""
    broken: set[Keys] = set()
    while True:
        found = {_removable(detail) for detail in details}
        broken |= found
        if () in found:
            return None, broken
        for keys in found:
            _remove(plain, keys)
        try:
            return _model(plain), broken
        except ValidationError as error:
            details = error.errors(include_url=False)


def _model(plain: object) -> Recipe:
    """Validate strictly: JSON mode still turns a text into a path, and nothing else into another type."""
    return Recipe.model_validate_json(json.dumps(plain), strict=True)


def _keys(detail: ErrorDetails) -> Keys:
    """Where an error is, without the tags of unions, which are no keys of the recipe."""
    return tuple(str(part) for part in detail["loc"] if not str(part).startswith("<"))


def _removable(detail: ErrorDetails) -> Keys:
    """The smallest part to leave out: what lacks a key, or the whole list, so that no index shifts."""
    keys = _keys(detail)
    if detail["type"] == "missing":
        keys = keys[:-1]
    indices = [depth for depth, key in enumerate(keys) if key.isdecimal()]
    return keys[: indices[0]] if indices else keys


def _remove(plain: Any, keys: Keys) -> None:
    for key in keys[:-1]:
        plain = plain.get(key) if isinstance(plain, dict) else None
    if isinstance(plain, dict) and keys:
        plain.pop(keys[-1], None)


def _problem(tree: Node, detail: ErrorDetails) -> Problem:
    keys = _keys(detail)
    describe = _DESCRIPTIONS.get(detail["type"], _out_of_range)
    message, remedy = describe(keys, detail)
    return Problem(place_of(tree, keys), message, remedy)


def _shown(keys: Keys, detail: ErrorDetails) -> str:
    """The value as written, cut where long; values of environment variables stay hidden."""
    if keys[:2] == ("cluster", "env"):
        return "the value"
    text = json.dumps(detail["input"], ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _unknown_key(keys: Keys, detail: ErrorDetails) -> tuple[str, str]:
    return f"unknown key {keys[-1]!r}", suggest_key(keys[:-1], keys[-1])


def _missing(keys: Keys, detail: ErrorDetails) -> tuple[str, str]:
    [*_, field] = [s.model_fields[keys[-1]] for s in sections_at(keys[:-1]) if keys[-1] in s.model_fields]
    return f"{keys[-1]!r} is missing", f"{keys[-1]}: … ({field.description})"


def _not_among(keys: Keys, detail: ErrorDetails) -> tuple[str, str]:
    allowed = detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
    return f"{_shown(keys, detail)} is not one of {', '.join(allowed)}", suggest(str(detail["input"]), allowed)


def _mapping_expected(keys: Keys, detail: ErrorDetails) -> tuple[str, str]:
    inside = ", ".join(keys_at(keys)) or "name: value"
    return f"expected a mapping of keys, not {_shown(keys, detail)}", f"keys: {inside}"


def _list_expected(keys: Keys, detail: ErrorDetails) -> tuple[str, str]:
    return f"expected a list, not {_shown(keys, detail)}", "[…] or lines that start with '- '"


def _not_a(kind: str, remedy: str) -> Callable[[Keys, ErrorDetails], tuple[str, str]]:
    return lambda keys, detail: (f"{_shown(keys, detail)} is not {kind}", remedy)


def _out_of_range(keys: Keys, detail: ErrorDetails) -> tuple[str, str]:
    condition = detail["msg"].removeprefix("Input should be ")
    return f"{_shown(keys, detail)} is out of range", f"a value {condition}"


_DESCRIPTIONS: dict[str, Callable[[Keys, ErrorDetails], tuple[str, str]]] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing,
    "literal_error": _not_among,
    "model_type": _mapping_expected,
    "model_attributes_type": _mapping_expected,
    "dict_type": _mapping_expected,
    "list_type": _list_expected,
    "bool_type": _not_a("a truth value", "true or false"),
    "int_type": _not_a("a whole number", "digits without quotes or decimal point"),
    "float_type": _not_a("a number", "a number without quotes, such as 0.5 or 1e-6"),
    "finite_number": _not_a("a finite number", "a number such as 0.5 or 1e-6"),
    "string_type": _not_a("a text", "quotes around it"),
    "too_short": lambda keys, detail: (f"{keys[-1]!r} is empty", "at least one entry"),
}
