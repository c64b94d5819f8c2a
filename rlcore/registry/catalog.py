"""The catalog of installed plugins: who offers which name, in what state, and how to get at one.

Two phases. A catalog is made from metadata and imports no plugin; `load` imports the single one asked for.
A plugin that nobody asks for cannot stop the host; one that is asked for and unsound is an error.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from rlcore.errors import Problem, RlcoreError, fail
from rlcore.registry.candidate import Candidate
from rlcore.registry.kinds import BY_GROUP, KINDS
from rlcore.registry.metadata import Declaration, survey
from rlcore.registry.requirements import Lack, unmet

if TYPE_CHECKING:
    from pathlib import Path

    from rlcore.registry.loading import Plugin


@dataclass(frozen=True)
class Catalog:
    """The plugins that this environment offers to one run; `shadowed` names stale copies that were ignored."""

    candidates: tuple[Candidate, ...]
    require: tuple[str, ...] = ()
    shadowed: tuple[str, ...] = ()

    @classmethod
    def installed(cls, deny: Iterable[str] = (), require: Iterable[str] = ()) -> "Catalog":
        """Read the catalog from metadata. `deny` and `require` hold `NAME`, `dist:NAME` or `kind:NAME`."""
        found, deny = survey(), tuple(deny)
        lacks = {requires: unmet(requires) for requires in {one.requires for one in found.declarations}}
        candidates = (_candidate(one, lacks[one.requires], deny) for one in found.declarations)
        return cls(_with_conflicts(candidates), tuple(require), found.shadowed)

    def names(self, kind: str) -> list[str]:
        """The names of a kind that can be used, sorted."""
        return sorted({one.name for one in self.candidates if one.kind == kind and one.sound})

    def find(self, kind: str, name: str, place: str = "") -> Candidate:
        """Return the one plugin that `name` (or `dist:name`) means; `place` is who asks, such as a recipe key.

        Raises RlcoreError if there is none, several, or one that cannot be used.
        """
        place = place or f"{kind} {name!r}"
        claims = [one for one in self.candidates if one.kind == kind and one.matches(name)]
        enabled = [one for one in claims if one.state != "disabled"]
        if not claims:
            raise RlcoreError(self._not_installed(kind, name, place))
        if not enabled:
            raise fail(place, *claims[0].trouble)
        if len(enabled) > 1:
            raise fail(place, *_conflict(enabled))
        if enabled[0].state not in ("found", "conflict"):
            raise fail(place, *enabled[0].trouble)
        return enabled[0]

    def required(self) -> list[Candidate]:
        """The plugins that `require` names; raises RlcoreError naming every one that is missing or unsound."""
        found: list[Candidate] = []
        problems: list[Problem] = []
        for selector in self.require:
            kinds = sorted({one.kind for one in self.candidates if one.matches(selector)})
            if not kinds:
                message = f"required plugin {selector!r} is not installed"
                problems.append(Problem("plugins.require", message, _suggestion(selector, self.all_names())))
            for kind in kinds:
                try:
                    found.append(self.find(kind, selector, f"plugins.require {selector!r}"))
                except RlcoreError as error:
                    problems.extend(error.problems)
        if problems:
            raise RlcoreError(problems)
        return found

    def all_names(self) -> list[str]:
        """Every name that can be used, of any kind."""
        return sorted({one.name for one in self.candidates if one.sound})

    def load(self, kind: str, name: str, place: str = "") -> "Plugin":
        """Import the one plugin that `name` means; raises RlcoreError naming it, the cause and a remedy."""
        from rlcore.registry.loading import load

        return load(self.find(kind, name, place))

    def resources(self) -> "dict[str, Path]":
        """Package folders of the resource plugins that can be used, by name, found without an import."""
        from rlcore.registry.resources import package_folder

        sound = [one for one in self.candidates if one.kind == "resource" and one.sound]
        folders = {one.name: package_folder(one.value) for one in sound}
        return {name: folder for name, folder in folders.items() if folder is not None}

    def _not_installed(self, kind: str, name: str, place: str) -> Problem:
        names = self.names(kind)
        installed = ", ".join(names) or "none"
        return Problem(
            place, f"no {kind} {name!r} is installed; there are: {installed}", _suggestion(name, names)
        )


def _candidate(declaration: Declaration, lack: Lack | None, deny: tuple[str, ...]) -> Candidate:
    """Judge one declaration by itself; conflicts need the others."""
    kind = BY_GROUP.get(declaration.group)
    plugin = Candidate(
        kind.name if kind else "unknown",
        declaration.name,
        declaration.dist,
        declaration.version,
        declaration.value,
    )
    reinstall = f"pip install --force-reinstall {plugin.dist}, or deny {plugin.dist}:{plugin.name}"
    if denied := next((selector for selector in deny if plugin.matches(selector)), None):
        reason = f"denied by {denied!r}"
        return replace(plugin, state="disabled", reason=reason, remedy="take it out of the deny list")
    if declaration.defect:
        return replace(plugin, state="broken", reason=declaration.defect, remedy=reinstall)
    if kind is None:
        reason = f"rlcore has no entry-point group {declaration.group}"
        return replace(plugin, state="broken", reason=reason, remedy=_suggestion(declaration.group, BY_GROUP))
    if lack:
        return replace(plugin, state=lack.state, reason=lack.reason, remedy=lack.remedy or reinstall)
    return plugin


def _with_conflicts(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Sort by kind, name and distribution, and mark the names that several distributions claim."""
    order = {name: index for index, name in enumerate(KINDS)}
    ranked = sorted(candidates, key=lambda one: (order.get(one.kind, len(order)), one.name, one.dist))
    result: list[Candidate] = []
    for (kind, _), group in groupby(ranked, key=lambda one: (one.kind, one.name)):
        claims = list(group)
        rivals = [one for one in claims if one.state != "disabled"]
        if kind in KINDS and len(rivals) > 1:
            message, remedy = _conflict(rivals)
            claims = [
                replace(one, state="conflict", reason=message, remedy=remedy) if one.state == "found" else one
                for one in claims
            ]
        result += claims
    return tuple(result)


def _conflict(rivals: list[Candidate]) -> tuple[str, str]:
    """Message and remedy for a name that several distributions claim."""
    who = " and ".join(f"{one.dist} {one.version}" for one in rivals)
    ways = " or ".join(f"{one.dist}:{one.name}" for one in rivals)
    return f"{who} claim {rivals[0].kind} {rivals[0].name!r}", f"write {ways}, or deny one of them"


def _suggestion(name: str, known: Iterable[str]) -> str:
    """Did you mean …, or where to look."""
    from difflib import get_close_matches

    close = get_close_matches(name.rpartition(":")[2], list(known), n=1)
    return f"did you mean {close[0]}?" if close else "rlcore list-plugins shows what is installed"
