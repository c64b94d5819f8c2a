"""Rows of a dataset, read and checked in one pass: prompt, label, metadata and tools of each line.

Every bad row is reported with its file and line, all of them at once. Turning prompts into tokens is
`rlcore.data.chat`'s work.
"""

import contextlib
import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcore.data.sample import Message
from rlcore.errors import Problem, RlcoreError, fail, raise_if_any

if TYPE_CHECKING:
    from rlcore.config.generation import Dataset

SHOWN_PROBLEMS = 20
_KINDS: dict[type, str] = {
    dict: "a mapping",
    list: "a list",
    str: "a text",
    bool: "a boolean",
    int: "a number",
    float: "a number",
}
_SLICE = re.compile(r"^(?P<file>.*)@\[(?P<start>-?\d*):(?P<stop>-?\d*)\]$")


@dataclass(frozen=True, slots=True)
class Row:
    """One problem. `place` is its file and line; `columns` is the whole row as it was read."""

    prompt: str | list[Message]
    place: str
    label: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tools: list[dict[str, Any]] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


def load_rows(section: "Dataset") -> list[Row]:
    """Read the rows that a dataset section of the recipe names.

    Raises RlcoreError with every bad row (the first 20 in words), or for a missing, unreadable or empty file.
    """
    path, wanted = split_slice(str(section.path))
    raw_rows = list(_reader(path)(path))[wanted]
    rows: list[Row] = []
    problems: list[Problem] = []
    for place, raw in raw_rows:
        try:
            rows.append(_parse(place, raw, section))
        except RlcoreError as error:
            problems.extend(error.problems)
    raise_if_any(first_problems(problems))
    if not rows:
        raise fail(str(section.path), "the dataset has no rows", "a file or slice with at least one row")
    return rows


def first_problems(problems: list[Problem]) -> list[Problem]:
    """Keep as many problems as a person reads, and say how many more there are."""
    shown, hidden = problems[:SHOWN_PROBLEMS], len(problems) - SHOWN_PROBLEMS
    if hidden > 0:
        shown.append(Problem(shown[0].place.rsplit(":", 1)[0], f"and {hidden} more problems like these"))
    return shown


def split_slice(path: str) -> tuple[Path, slice]:
    """Split `file.jsonl@[a:b]` into the file and the slice of its rows; a bound may be negative or empty."""
    if match := _SLICE.match(path):
        start, stop = (int(bound) if bound else None for bound in match.group("start", "stop"))
        return Path(match["file"]), slice(start, stop)
    if "@[" in path:
        raise fail(path, "not a slice of rows", "file.jsonl@[start:stop], such as train.jsonl@[0:1000]")
    return Path(path), slice(None)


def _reader(path: Path) -> "Callable[[Path], Iterator[tuple[str, Any]]]":
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise fail(str(path), f"unknown dataset format {path.suffix!r}", "a .jsonl or .parquet file")
    if not path.is_file():
        siblings = [file.name for file in path.parent.glob(f"*{path.suffix}")]
        near = difflib.get_close_matches(path.name, siblings, n=1)
        raise fail(str(path), "no such file", f"did you mean {path.with_name(near[0])}?" if near else "")
    return readers[path.suffix]


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield place and content of each line that is not blank; a line that cannot be read yields its Problem."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield place, json.loads(text)
            except UnicodeDecodeError as error:
                byte = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
                yield place, Problem(place, f"not UTF-8 ({byte})", "save the file as UTF-8")
            except json.JSONDecodeError as error:
                message = f"not JSON: {error.msg} at column {error.colno}"
                yield place, Problem(place, message, "one JSON object per line")


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise fail(str(path), "reading Parquet needs pyarrow", "pip install pyarrow") from None
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise fail(str(path), f"not a Parquet file: {error}") from None
    for number, row in enumerate(rows, start=1):
        yield f"{path}:{number}", row


def _parse(place: str, raw: Any, section: "Dataset") -> Row:
    """Check one row. Raises RlcoreError with everything that is wrong in it."""
    if isinstance(raw, Problem):
        raise RlcoreError(raw)
    if not isinstance(raw, dict):
        raise fail(place, f"the row is {_kind(raw)}", "one JSON object per line")
    fields = _Fields(place, raw)
    row = Row(
        prompt=fields.prompt(section),
        label=fields.label(section),
        metadata=fields.metadata(section),
        tools=fields.tools(section),
        place=place,
        columns=raw,
    )
    raise_if_any(fields.problems)
    return row


@dataclass
class _Fields:
    """Reads the fields of one row and keeps a list of what is wrong with them."""

    place: str
    row: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)

    def prompt(self, section: "Dataset") -> str | list[Message]:
        key = section.prompt_key
        if key not in self.row:
            self._missing(key, "prompt_key")
            return ""
        value = self.row[key]
        if not isinstance(value, str | list) or not value:
            self._wrong(key, value, "a text that is not empty, or a list of chat messages")
        elif isinstance(value, list):
            if not section.chat_template:
                self._wrong(key, value, "a text, or chat_template: true")
            for number, message in enumerate(value):
                self._message(f"{key}[{number}]", message)
        return value

    def label(self, section: "Dataset") -> str | None:
        key = section.label_key
        if key not in self.row and "label_key" in section.model_fields_set:
            self._missing(key, "label_key")
        value = self.row.get(key)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._wrong(key, value, "a text or a number")
        return str(value)

    def metadata(self, section: "Dataset") -> dict[str, Any]:
        value = self.row.get(section.metadata_key)
        if value is not None and not isinstance(value, dict):
            self._wrong(section.metadata_key, value, "a mapping")
        return value or {}

    def tools(self, section: "Dataset") -> list[dict[str, Any]] | None:
        value = self.row.get(section.tools_key)
        if isinstance(value, str):
            with contextlib.suppress(json.JSONDecodeError):  # a bad text is reported below
                value = json.loads(value)
        if value is not None and not _is_list_of_mappings(value):
            self._wrong(section.tools_key, value, "a list of tool descriptions (mappings), or its JSON text")
        return value or None

    def _message(self, where: str, message: Any) -> None:
        if not isinstance(message, dict):
            self._wrong(where, message, '{"role": …, "content": …}')
        elif not isinstance(message.get("role"), str):
            self._wrong(f"{where}.role", message.get("role"), "a text such as user or assistant")
        elif not (isinstance(message.get("content"), str | list) or message.get("tool_calls")):
            self._wrong(f"{where}.content", message.get("content"), "a text, or a list of parts")

    def _missing(self, key: str, setting: str) -> None:
        near = difflib.get_close_matches(key, self.row, n=1)
        remedy = (
            f"did you mean {near[0]!r}?" if near else f"{setting}: one of {', '.join(self.row) or 'no keys'}"
        )
        self.problems.append(Problem(self.place, f"no key {key!r}", remedy))

    def _wrong(self, key: str, value: Any, expected: str) -> None:
        self.problems.append(Problem(self.place, f"{key} is {_kind(value)}", expected))


def _is_list_of_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _kind(value: Any) -> str:
    """Name a JSON value's type and show its beginning."""
    if value is None:
        return "missing"
    shown = json.dumps(value, ensure_ascii=False, default=str)
    beginning = shown if len(shown) <= 40 else shown[:39] + "…"
    return f"{_KINDS.get(type(value), type(value).__name__)} ({beginning})"
