"""Writing and reading the small files of a run so that a crash never leaves half of one.

Whole files are replaced atomically; JSON lines are appended, and a line torn by a crash is dropped when
the file is opened again. What the files mean is left to the modules that use them.
"""

import json
import math
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlcore.errors import fail

# A lone surrogate in a model's output has no UTF-8; written as \udXXX it is still the same text in JSON.
ERRORS = "backslashreplace"


def plain(value: Any) -> Any:
    """Return `value` as JSON can hold it: NaN and infinity become None, unknown objects their text."""
    if hasattr(value, "item"):  # scalars of numpy and torch, without importing either
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value)


def write_text(path: Path, text: str) -> Path:
    """Replace `path` by `text` in one step: a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors=ERRORS) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private; run folders are shared with colleagues
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_json(path: Path, data: Any) -> Path:
    """Replace `path` by `data` as indented JSON, atomically."""
    return write_text(path, json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def json_line(record: Mapping[str, Any]) -> str:
    """One record as one line of JSON, newline included."""
    return json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n"


class JsonLines:
    """An append-only file of records; each is handed to the system at once. Threads may share it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_tail(path)
        self._file = path.open("a", encoding="utf-8", errors=ERRORS)
        self._lock = threading.Lock()

    def append(self, record: Mapping[str, Any]) -> None:
        with self._lock:
            self._file.write(json_line(record))
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _drop_torn_tail(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every complete record of `path`, none if there is no file; a torn last line is passed over.

    Raises RlcoreError with file and line for a broken line that is not the last.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split(
        "\n"
    )  # not splitlines: JSON may hold other line breaks, such as U+2028, as they are
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise fail(f"{path}:{number}", f"not a line of JSON ({error.msg})", "remove the line") from error
    return records
