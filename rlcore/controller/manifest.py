"""The list of a checkpoint's files, by which one is told that lost some of them, or parts of them."""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from rlcore.telemetry.files import write_json

MANIFEST = "manifest.json"
# Reading terabytes again costs more than it tells: what is torn misses its end, or has zeros there.
_SAMPLED = 2**16


def write_manifest(folder: Path) -> None:
    """List every file with its size and a checksum of its first and last bytes; all of it is on the disk then.

    Raises OSError.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        to_disk(path)
    write_json(folder / MANIFEST, {str(path.relative_to(folder)): _entry(path) for path in files})
    for path in (folder / MANIFEST, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        to_disk(path)


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a folder, in words; None where all are as they were listed."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{MANIFEST}: {error}"
    return next(_differences(folder, listed), None)


def _differences(folder: Path, listed: dict[str, dict[str, int]]) -> Iterator[str]:
    for name, entry in listed.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif (size := path.stat().st_size) != entry["bytes"]:
            yield f"{name} has {size} bytes instead of {entry['bytes']}"
        elif _entry(path) != entry:
            yield f"{name} has another content than was written"


def _entry(path: Path) -> dict[str, int]:
    with path.open("rb") as file:
        head = file.read(_SAMPLED)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _SAMPLED))
        return {"bytes": size, "crc32": zlib.crc32(file.read(), zlib.crc32(head))}


def to_disk(path: Path) -> None:
    """Ask the system to write a file, or a folder's list of names, now. Raises OSError.

    A rename must not reach the disk before what it publishes.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
