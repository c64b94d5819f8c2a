"""Compares what a plugin's distribution requires with what is installed.

pip checks this at installation; editable installs, `--no-deps` and later upgrades get past it.
"""

import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import rlcore

State = Literal["found", "disabled", "incompatible", "conflict", "missing-dependency", "ok", "broken"]

# What each extra of rlcore brings: top-level module and the distribution that holds it.
EXTRAS = {
    "train": {
        "torch": "torch",
        "megatron": "megatron-core",
        "transformers": "transformers",
        "mbridge": "mbridge",
        "ray": "ray",
        "safetensors": "safetensors",
        "einops": "einops",
        "numpy": "numpy",
    },
    "sglang": {"sglang": "sglang"},
    "deepep": {"deep_ep": "deep_ep"},
}


def is_optional(module: str) -> bool:
    """Whether a module (dotted or not) belongs to an extra of rlcore."""
    return any(module.partition(".")[0] in modules for modules in EXTRAS.values())


def install_command(module: str) -> str:
    """The pip command that brings a module: an extra of rlcore where one holds it."""
    module = module.partition(".")[0]
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
        elif installed_version(requirement.name) is None:
            missing.append(f"{requirement.name}{requirement.specifier}")
    if missing:
        command = "pip install " + " ".join(f"'{name}'" for name in missing)
        return Lack("missing-dependency", f"it needs {', '.join(missing)}, not installed", command)
    return None


def installed_version(distribution: str) -> str | None:
    """The version of a distribution, or None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
