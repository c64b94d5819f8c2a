"""What a checkpoint says before it is read: its architecture, and whether a folder holds weights.

The architecture is in its config.json, or in the preset that a plugin ships for a public model.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcore.errors import Problem, fail
from rlcore.registry import Catalog

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Architecture:
    """A config.json with the recipe's overrides, and the file that it was read from."""

    hf_config: dict[str, Any]
    file: Path


def is_here(checkpoint: str) -> bool:
    """Whether a checkpoint is a folder of this machine."""
    return Path(checkpoint).expanduser().is_dir()


def is_hub_id(checkpoint: str) -> bool:
    """Whether a checkpoint is named as model hubs do: ORG/MODEL."""
    return _HUB_ID.fullmatch(checkpoint) is not None


def missing_weights(key: str, folder: Path, *, torch_dist_only: bool) -> Iterator[Problem]:
    """One problem if the folder that `key` names holds no weights: torch_dist, or else Hugging Face format."""
    folder = folder.expanduser()
    files, kind = ["metadata.json"], "a torch_dist checkpoint"
    if not torch_dist_only:
        files, kind = [*files, "*.safetensors"], "a checkpoint"
    if any(any(folder.glob(file)) for file in files):
        return
    if not folder.is_dir():
        remedy = f"a path relative to {Path.cwd()}, or an absolute one"
        yield Problem(key, f"there is no folder {str(folder)!r}", remedy)
    else:
        inside = next((str(path.parent) for file in files for path in sorted(folder.rglob(file))), "")
        needs = " or ".join(files)
        yield Problem(
            key, f"{str(folder)!r} is not {kind}: it has no {needs}", inside or f"a folder with {needs}"
        )


def read_architecture(checkpoint: str, overrides: dict[str, Any], catalog: Catalog) -> Architecture:
    """Read the config.json of a folder, or the preset of a hub id that is not on this machine.

    A preset is `presets/NAME.json` of a resource plugin, NAME in lower case without the organisation.
    Raises RlcoreError at `model.checkpoint` for what is neither, and for what is not a configuration.
    """
    file = _config_file(checkpoint, catalog)
    place = "model.checkpoint"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise fail(place, f"{file} does not exist", "a folder in Hugging Face format") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise fail(place, f"{file} is not JSON: {error}", "fetch the checkpoint again") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise fail(place, f"{file} names no model_type", "a folder in Hugging Face format")
    return Architecture(config | overrides, file)


def _config_file(checkpoint: str, catalog: Catalog) -> Path:
    if is_here(checkpoint):
        return Path(checkpoint).expanduser() / "config.json"
    if not is_hub_id(checkpoint):
        message = f"there is no folder {checkpoint!r} on this machine"
        raise fail("model.checkpoint", message, "the path of a checkpoint, or a hub id such as ORG/MODEL")
    name = checkpoint.split("/")[1].lower()
    for folder in catalog.resources().values():
        if (preset := folder / "presets" / f"{name}.json").is_file():
            return preset
    message = f"{checkpoint!r} is not on this machine, and no installed plugin ships its configuration"
    remedy = f"the path of a folder, or hf download {checkpoint} --local-dir {name}, then checkpoint: {name}"
    raise fail("model.checkpoint", message, remedy)
