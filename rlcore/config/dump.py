"""The resolved recipe as text: every key with its value, and as a comment the place that set it."""

from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from rlcore.config.rules import is_secret
from rlcore.config.schema import Recipe
from rlcore.config.tree import Node

DEFAULT = "default"


def dump(recipe: Recipe, tree: Node, *, defaults: bool = True) -> str:
    """Write a recipe as YAML that loads back to an equal one; `defaults=False` keeps what somebody set."""
    values = recipe.model_dump(mode="json", exclude_unset=not defaults)
    for name in filter(is_secret, recipe.cluster.env):  # refused by a rule, but `plan` still shows the rest
        values["cluster"]["env"][name] = "…"
    yaml = YAML()
    yaml.width = 10_000
    yaml.representer.add_representer(type(None), _null)
    text = StringIO()
    yaml.dump(_commented(values, tree, ()), text)
    return text.getvalue()


def origin(tree: Node, keys: tuple[str, ...]) -> str:
    """Name the place that set a key, or `default`; a plugin's bare name is its `use`."""
    *_, nearest = found = list(tree.along(keys))
    missing = keys[len(found) - 1 :]
    if not missing or (missing == ("use",) and isinstance(nearest.value, str)):
        return nearest.place
    return DEFAULT


def _commented(value: Any, tree: Node, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict) and value:
        mapping = CommentedMap()
        for key, below in value.items():
            path = (*keys, key)
            mapping[_text(key)] = _commented(below, tree, path)
            if not _is_block(below):
                mapping.yaml_add_eol_comment(origin(tree, path), _text(key), column=0)
        return mapping
    if isinstance(value, list) and value:
        items = CommentedSeq(_commented(item, tree, (*keys, str(n))) for n, item in enumerate(value))
        if not _is_block(value):
            items.fa.set_flow_style()
        return items
    return _text(value) if isinstance(value, str) else value


def _is_block(value: Any) -> bool:
    """Whether a value takes lines of its own: mappings, and lists that hold any."""
    if isinstance(value, list):
        return any(isinstance(item, dict | list) for item in value)
    return isinstance(value, dict) and bool(value)


def _null(representer: Any, _: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def _text(value: str) -> str:
    """Quote what would not survive on one plain line."""
    return value if value.isascii() and value.isprintable() else DoubleQuotedScalarString(value)
