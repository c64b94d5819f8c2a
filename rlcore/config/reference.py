"""The reference of all recipe keys as Markdown, made from the schema: `python -m rlcore.config.reference`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rlcore.config.fields import sections_in
from rlcore.config.schema import Recipe
from rlcore.config.section import Section

_HEAD = """\
# Recipe keys

Made from the schema by `python -m rlcore.config.reference > docs/recipes.md`; do not edit.

A recipe is YAML 1.2. `base: [NAME, ./FILE.yaml]` lays it over others, the later over the earlier: mappings
merge, lists are replaced, and setting `use` resets `options`. `--set a.b=value` changes a value from the
command line; items of a list are named by index (`rewards.0.weight=2`). Relative paths start at the current
folder. `rlcore plan RECIPE` shows where each value comes from and everything that is wrong.
"""


def reference() -> str:
    """Return the whole page."""
    return "\n".join([_HEAD, *_section(Recipe, "", ())])


def _section(section: type[Section], key: str, seen: tuple[type[Section], ...]) -> Iterator[str]:
    """Yield the table of one section, then those of the sections below it."""
    yield f"## {f'`{key}`' if key else 'Top level'}\n"
    yield f"{section.__doc__}\n"
    yield "| key | type | default | meaning |\n| --- | --- | --- | --- |"
    for name, field in section.model_fields.items():
        yield f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {field.description} |"
    yield ""
    for name, field in section.model_fields.items():
        for below in sections_in(field.annotation):
            if below not in seen:
                yield from _section(below, f"{key}.{name}".lstrip("."), (*seen, section))


def _type(annotation: Any) -> str:
    """Say a type in words of YAML."""
    words: dict[Any, str] = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true, false",
        Path: "path",
        type(None): "null",
        Any: "anything",
    }
    if annotation in words:
        return words[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    arguments = get_args(annotation)
    match get_origin(annotation):
        case origin if origin is list:
            return f"list of {_type(arguments[0])}"
        case origin if origin is dict:
            return "mapping"
        case origin if origin is Literal:
            return ", ".join(f"`{choice}`" for choice in arguments)
    if hasattr(annotation, "__metadata__"):
        return _type(arguments[0])
    return " or ".join(dict.fromkeys(map(_type, arguments)))


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return "see below"
    if field.default is None:
        return "–"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


if __name__ == "__main__":
    print(reference(), end="")
