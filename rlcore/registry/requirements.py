"""Compares what a plugin's distribution requires with what is installed.

pip checks this at installation; editable installs, `--no-deps` and later upgrades get past it.
"""

import importlib.metadata
import operator
import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

import rlcore
from rlcore.registry.metadata import distributions

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


class Lack(NamedTuple):
    """Why a plugin cannot be used, as its metadata tells."""

    state: State
    reason: str
    remedy: str = ""


def unmet(requires: Iterable[str]) -> Lack | None:
    """Return what is lacking, or None: rlcore must fit in version, other distributions must be there."""
    missing = []
    for line in requires:
        try:
            name, specifier = _parse(line)
        except ValueError:
            return Lack("broken", f"it requires {line!r}, which is no valid requirement")
        if name.lower() == "rlcore":
            if not _admits(specifier, rlcore.__version__):
                reason = f"it needs rlcore{specifier}, this is rlcore {rlcore.__version__}"
                return Lack("incompatible", reason, f"pip install 'rlcore{specifier}'")
        elif name and not _is_installed(name):
            missing.append(name + specifier)
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


def _is_installed(distribution: str) -> bool:
    """Like `installed_version`, without reading a file."""
    return next(distributions(distribution), None) is not None


# Importing `packaging` takes longer than all the rest of a listing. The plainest forms, which are nearly all
# that occur, are therefore read here, and everything else is left to it.
_CLAUSE = r"([<>]=?|[!=]=)\s*(\d+(?:\.\d+)*)"
_PLAIN = re.compile(rf"([A-Za-z0-9][\w.-]*)\s*((?:{_CLAUSE}\s*,?\s*)*)")
# What an extra needs, whatever else it depends on.
_EXTRA_ONLY = re.compile(r"[^;]*;((?!\bor\b).)*\bextra\s*==\s*['\"][\w.-]+['\"]\s*")
_COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def _parse(line: str) -> tuple[str, str]:
    """Name and specifier of a requirement; the name is empty where it is not for this environment.

    Raises ValueError if it is no requirement.
    """
    if plain := _PLAIN.fullmatch(line):
        return plain[1], plain[2].strip()
    if _EXTRA_ONLY.fullmatch(line):
        return "", ""
    from packaging.requirements import Requirement

    requirement = Requirement(line)
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    return requirement.name if applies else "", str(requirement.specifier)


def _admits(specifier: str, version: str) -> bool:
    """Whether a version satisfies a specifier; pre-releases count (PEP 440)."""
    clauses = [re.fullmatch(_CLAUSE, part.strip()) for part in specifier.split(",") if part.strip()]
    if all(clauses) and re.fullmatch(r"\d+(\.\d+)*", version):
        have = _release(version)
        return all(_COMPARE[clause[1]](have, _release(clause[2])) for clause in clauses if clause)
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(version, prereleases=True)


def _release(version: str) -> tuple[int, ...]:
    """A release number in a form that compares: 1.0 equals 1."""
    return tuple(map(int, re.sub(r"(\.0+)+$", "", version).split(".")))
