"""Compares what a plugin's distribution requires with what is installed.

pip checks this at installation; editable installs, `--no-deps` and later upgrades get past it.
"""

import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import rlcore

State = Literal["found", "disabled", "incompatible", "conflict", "missing-dependency", "ok", "broken"]

# Top-level modules of the optional dependencies, by the extra of rlcore that brings them.
EXTRAS = {
    "train": ("torch", "megatron", "transformers", "mbridge", "ray", "safetensors", "einops", "numpy"),
    "sglang": ("sglang",),
    "deepep": ("deep_ep",),
}


def install_command(module: str) -> str:
    """The pip command that brings a top-level module: an extra of rlcore where one holds it."""
    for extra, modules in EXTRAS.items():
        if module in modules:
            return f"pip install 'rlcore[{extra}]'"
    return f"pip install {module}"


@dataclass(frozen=True)
class Lack:
    """Why a plugin cannot be used, as its metadata tells."""

    state: State
    reason: str
    remedy: str = ""


def unmet(requires: Iterable[str]) -> Lack | None:
    """Return what is lacking, or None: rlcore must fit in version, other distributions must be there."""
    from packaging.requirements import InvalidRequirement, Requirement

    missing = []
    for line in requires:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            return Lack("broken", f"it requires {line!r}, which is no valid requirement")
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name.lower() == "rlcore":
            if not requirement.specifier.contains(rlcore.__version__, prereleases=True):
                reason = f"it needs rlcore{requirement.specifier}, this is rlcore {rlcore.__version__}"
                return Lack("incompatible", reason, f"pip install 'rlcore{requirement.specifier}'")
        elif not _is_installed(requirement.name):
            missing.append(f"{requirement.name}{requirement.specifier}")
    if missing:
        command = "pip install " + " ".join(f"'{name}'" for name in missing)
        return Lack("missing-dependency", f"it needs {', '.join(missing)}, not installed", command)
    return None


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
