"""plugins.lock.json: which plugins a run was made with, down to the content of their files.

It is written into the run folder and compared by every worker process and on resume, because a run that goes
on with other code than it began with is another run.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rlcore.errors import Problem
from rlcore.registry.resources import package_folder

if TYPE_CHECKING:
    from rlcore.registry.candidate import Candidate
    from rlcore.registry.loading import Plugin


@dataclass(frozen=True)
class LockEntry:
    """One plugin of a run; `sha256` covers every file of its top-level package, or its single module."""

    kind: str
    name: str
    distribution: str
    version: str
    entry_point: str
    sha256: str


def make(plugins: "Iterable[Plugin]") -> list[LockEntry]:
    """Lock loaded plugins, each once, sorted by kind and name."""
    return _sorted({_entry(plugin.candidate) for plugin in plugins})


def write(path: Path, entries: Iterable[LockEntry]) -> None:
    """Write the lock file."""
    path.write_text(json.dumps([asdict(entry) for entry in entries], indent=2) + "\n", encoding="utf-8")


def read(path: Path) -> list[LockEntry]:
    """Read a lock file."""
    return [LockEntry(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def verify(path: Path, entries: Iterable[LockEntry]) -> list[Problem]:
    """Compare `entries` with the lock file at `path`; one problem per plugin that differs."""
    return differences(read(path), entries)


def differences(before: Iterable[LockEntry], now: Iterable[LockEntry]) -> list[Problem]:
    """One problem for each plugin that differs from what a run was made with."""
    locked = {(entry.kind, entry.name): entry for entry in before}
    current = {(entry.kind, entry.name): entry for entry in now}
    return [
        Problem(
            f"plugins.lock.json: {kind} {name}",
            change,
            "--accept-plugin-changes goes on with what is installed",
        )
        for kind, name in sorted(locked | current)
        if (change := _change(locked.get((kind, name)), current.get((kind, name))))
    ]


def _change(locked: LockEntry | None, current: LockEntry | None) -> str:
    """In words, how a plugin differs from its lock; empty if it does not."""
    if locked is None:
        return "the run was made without it"
    if current is None:
        return f"the run was made with {locked.distribution} {locked.version}, which is gone"
    if locked.sha256 != current.sha256 and locked.version == current.version:
        return f"the files of {locked.distribution} {locked.version} have changed"
    old, new = (f"{one.distribution} {one.version} ({one.entry_point})" for one in (locked, current))
    return "" if old == new else f"the run was made with {old}, now there is {new}"


def _sorted(entries: Iterable[LockEntry]) -> list[LockEntry]:
    return sorted(entries, key=lambda entry: (entry.kind, entry.name))


def _entry(candidate: "Candidate") -> LockEntry:
    top = candidate.value.partition(":")[0].partition(".")[0].strip()
    return LockEntry(
        candidate.kind, candidate.name, candidate.dist, candidate.version, candidate.value, _digest(top)
    )


@cache
def _digest(top: str) -> str:
    """sha256 over path and content of each file of a top-level package or module, compiled ones left out."""
    digest = hashlib.sha256()
    for path, name in _files(top):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _files(top: str) -> list[tuple[Path, str]]:
    """(path, name relative to the package) in a fixed order."""
    if folder := package_folder(top):
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return [(path, path.relative_to(folder).as_posix()) for path in paths]
    spec = importlib.util.find_spec(top)
    return [(Path(spec.origin), Path(spec.origin).name)] if spec and spec.origin else []
