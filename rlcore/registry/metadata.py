"""Reads the rlcore entry points of every installed distribution, from metadata files alone.

Whatever is installed must not stop the listing: a file that is not as packaging tools write it becomes a
declaration with a defect. States and rules are the catalog's.
"""

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import PurePath
from typing import NamedTuple


class Declaration(NamedTuple):
    """One entry point as a distribution declares it; `defect` says why it cannot be used."""

    dist: str
    version: str
    group: str
    name: str
    value: str
    requires: tuple[str, ...] = ()
    defect: str = ""


class Survey(NamedTuple):
    """All declarations, and distributions passed over because another one of that name came first."""

    declarations: tuple[Declaration, ...]
    shadowed: tuple[str, ...]


def canonical(name: str) -> str:
    """A distribution's name as the package index compares it (PEP 503)."""
    return name.lower().replace("_", "-").replace(".", "-")


def survey() -> Survey:
    """Read every distribution on sys.path; of several copies of one, the first counts, as for imports."""
    kept: dict[str, list[Declaration]] = {}
    shadowed = []
    for distribution in distributions():
        declared = _declarations(distribution)
        if not declared:
            continue
        name = canonical(declared[0].dist)
        if name not in kept:
            kept[name] = declared
        elif _offer(declared) != _offer(kept[name]):
            shadowed.append(f"{declared[0].dist} {declared[0].version} in {distribution.locate_file('')}")
    return Survey(tuple(one for declared in kept.values() for one in declared), tuple(shadowed))


def _offer(declared: list[Declaration]) -> set[tuple[str, ...]]:
    """What two copies of a distribution have in common if nothing is lost by passing over one."""
    return {(one.version, one.group, one.name, one.value) for one in declared}


def distributions(name: str | None = None) -> Iterator[importlib.metadata.Distribution]:
    """Installed distributions, or those of one name; an import hook that raises hides no other."""
    context = importlib.metadata.DistributionFinder.Context(name=name)
    for finder in sys.meta_path:
        find = getattr(finder, "find_distributions", None)
        if find is None:
            continue
        try:
            yield from find(context)
        except Exception:
            continue


def _declarations(distribution: importlib.metadata.Distribution) -> list[Declaration]:
    """The distribution's rlcore entry points; never raises, whatever its files hold."""
    try:
        text = distribution.read_text("entry_points.txt") or ""
    except UnicodeDecodeError as error:
        if b"rlcore." not in error.object:
            return []
        defect = "entry_points.txt is not UTF-8"
        return [Declaration(_folder(distribution), "unknown", "", "unknown", "", defect=defect)]
    except OSError:
        return []
    if "rlcore." not in text:
        return []
    name, version, defect = _folder(distribution), "unknown", ""
    requires: tuple[str, ...] = ()
    try:
        metadata = distribution.metadata
        name = metadata["Name"] or name
        version = metadata["Version"] or version
        requires = tuple(metadata.get_all("Requires-Dist") or distribution.requires or ())
    except Exception as error:
        defect = f"its metadata cannot be read: {error}"
    return [
        Declaration(name, version, group, key, value, requires, wrong or defect)
        for group, key, value, wrong in _parse(text)
    ]


def _folder(distribution: importlib.metadata.Distribution) -> str:
    """Name of the metadata folder, for want of a better one."""
    return PurePath(str(getattr(distribution, "_path", "unknown"))).name


def _parse(text: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield (group, name, value, defect) of the rlcore sections; a bad line does not spoil its neighbours."""
    group = ""
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif group.startswith("rlcore.") and line and not line.startswith(("#", ";")):
            name, equals, value = (part.strip() for part in line.partition("="))
            sound = equals and name and importlib.metadata.EntryPoint.pattern.match(value)
            yield group, name, value, "" if sound else f"line {number} of entry_points.txt is not NAME = MODULE"
