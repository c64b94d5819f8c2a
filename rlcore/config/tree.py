"""A recipe as it was written: YAML 1.2 values, each of which remembers where it came from.

Trees are read, merged and changed here; what the keys mean is for the schema.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from rlcore.errors import Problem, RlcoreError, fail

Scalar = str | int | float | bool | None
_TYPED_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float")}


@dataclass(frozen=True)
class Node:
    """A value and its place, `FILE:LINE` or the `--set` that made it."""

    value: "Scalar | dict[str, Node] | list[Node]"
    place: str

    def plain(self) -> Any:
        """Return the value without places, as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, key: str) -> "Node | None":
        """Return what stands under a key or a list index, None where nothing does."""
        if isinstance(self.value, dict):
            return self.value.get(key)
        if isinstance(self.value, list) and key.isdecimal() and int(key) < len(self.value):
            return self.value[int(key)]
        return None

    def along(self, keys: Sequence[str]) -> Iterator["Node"]:
        """Yield this node, then its descendants along `keys` for as long as they exist."""
        node: Node | None = self
        for key in (*keys, ""):
            if node is None:
                return
            yield node
            node = node.child(key)


def parse(text: str, place: Callable[[int], str]) -> Node:
    """Read one YAML 1.2 document; `place` names a line, counted from 1.

    Raises RlcoreError for what is not YAML, for every key written twice, for tags and for recursive anchors.
    """
    yaml = YAML(typ="safe", pure=True)
    try:
        document = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise fail(place(mark.line + 1), f"not valid YAML: {error.problem}", _yaml_remedy(error)) from None
    except YAMLError as error:
        raise fail(place(1), f"not valid YAML: {str(error).splitlines()[0]}", "plain UTF-8 text") from None
    if document is None:
        return Node(None, place(1))
    reader = _Reader(yaml, place)
    tree = reader.node(document, place(document.start_mark.line + 1), ())
    if reader.problems:
        raise RlcoreError(reader.problems)
    return tree


def _yaml_remedy(error: MarkedYAMLError) -> str:
    if "\\t" in str(error.problem):
        return "spaces instead of tabs"
    return "two spaces of indentation per level, a space after each colon, quotes around special characters"


class _Reader:
    """Turns ruamel's nodes, which carry line marks, into ours."""

    def __init__(self, yaml: YAML, place: Callable[[int], str]) -> None:
        self.yaml, self.place = yaml, place
        self.problems: list[Problem] = []

    def node(self, source: Any, place: str, parents: tuple[Any, ...]) -> Node:
        if any(source is parent for parent in parents):
            raise fail(place, "an anchor that contains itself", "write the values out")
        if isinstance(source, MappingNode):
            return Node(self._mapping(source, (*parents, source)), place)
        if isinstance(source, SequenceNode):
            inner = (*parents, source)
            return Node([self.node(item, self._line(item), inner) for item in source.value], place)
        return Node(self._scalar(source, place), place)

    def _mapping(self, source: MappingNode, parents: tuple[Any, ...]) -> dict[str, Node]:
        children: dict[str, Node] = {}
        for key, value in source.value:
            place = self._line(key)
            if not isinstance(key, ScalarNode):
                self.problems.append(Problem(place, "a key must be a word", "name: value"))
                continue
            if key.value == "<<":
                message = "YAML 1.2 has no merge key '<<'"
                self.problems.append(Problem(place, message, "an alias for a whole value, or a `base`"))
                continue
            if key.value in children:
                first = children[key.value].place
                message = f"key {key.value!r} was already written at {first}"
                self.problems.append(Problem(place, message, "keep one of the two"))
            children[key.value] = self.node(value, place, parents)
        return children

    def _scalar(self, source: ScalarNode, place: str) -> Scalar:
        tag = str(source.tag)
        if not tag.startswith("tag:yaml.org,2002:"):
            self.problems.append(Problem(place, f"recipes know no tag {tag}", f"{source.value!r} without it"))
        if tag in _TYPED_TAGS:
            value: Scalar = self.yaml.constructor.construct_object(source, deep=True)
            return value
        return str(source.value)

    def _line(self, source: Any) -> str:
        return self.place(source.start_mark.line + 1)


def merge(base: Node, over: Node) -> Node:
    """Lay one tree over another: mappings merge, all else is replaced, and `use` resets `options`.

    A plugin's bare name counts as `{use: NAME}`, so that options can be laid over it.
    """
    if not isinstance(over.value, dict):
        return over
    if isinstance(base.value, str) and "use" not in over.value:
        base = Node({"use": base}, base.place)
    if not isinstance(base.value, dict):
        return over
    merged = dict(base.value)
    if "use" in over.value:
        merged.pop("options", None)
    for key, child in over.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return Node(merged, over.place)


def assign(tree: Node, keys: Sequence[str], leaf: Node) -> Node:
    """Return the tree with `leaf` laid over what `keys` lead to; lists are entered by index and never grow."""
    key, rest = keys[0], keys[1:]
    child = tree.child(key)
    if isinstance(tree.value, list):
        if child is None:
            size = len(tree.value)
            raise fail(leaf.place, f"no item {key!r} in a list of {size}", f"0 to {size - 1}" if size else "")
        items = list(tree.value)
        items[int(key)] = assign(child, rest, leaf) if rest else merge(child, leaf)
        return replace(tree, value=items)
    if rest and child is not None and isinstance(tree.value, dict):
        return replace(tree, value={**tree.value, key: assign(child, rest, leaf)})
    for name in reversed(keys):
        leaf = Node({name: leaf}, leaf.place)
    return merge(tree, leaf)
