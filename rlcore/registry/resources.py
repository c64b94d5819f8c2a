"""Finds the data that plugins ship (presets, recipes, chat templates) by path, without importing them."""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe inside a plugin's package; `name` is RESOURCE/STEM, `summary` its first comment line."""

    name: str
    path: Path
    summary: str


def recipes(folders: Mapping[str, Path]) -> list[ShippedRecipe]:
    """The recipes (`recipes/*.yaml`) in the package folders of resource plugins by name, sorted by name."""
    return [
        ShippedRecipe(f"{name}/{path.stem}", path, _summary(path))
        for name, folder in sorted(folders.items())
        for path in sorted(folder.glob("recipes/*.yaml"))
    ]


def package_folder(package: str) -> Path | None:
    """Folder of a package. Only the finder of its top level runs, since asking for more imports a parent."""
    top, *rest = package.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    places = (spec.submodule_search_locations if spec else None) or []
    folders = (Path(place, *rest) for place in places)
    return next((folder for folder in folders if folder.is_dir()), None)


def _summary(path: Path) -> str:
    """The first line if it is a comment."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        match = re.match(r"#\s*(.*)", lines.readline())
    return match[1].strip() if match else ""
