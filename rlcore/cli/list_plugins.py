"""Show the installed plugins: kind, name, distribution, version and state.

Reads metadata only and imports no plugin; --check and --explain import each in a process of its own.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlcore.cli.output import print_json, table
from rlcore.errors import fail
from rlcore.registry import Candidate, Catalog
from rlcore.registry.kinds import KINDS

if TYPE_CHECKING:
    from rlcore.registry.probe import Probe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a list of records")
    parser.add_argument("--check", action="store_true", help="import every plugin, each in its own process")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if any plugin has a problem")
    parser.add_argument("--kind", choices=tuple(KINDS), help="only this kind")
    parser.add_argument("--explain", metavar="NAME", help="all about one plugin, its options included")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds that one import may take")
    several: dict[str, Any] = {"action": "append", "default": [], "metavar": "X"}
    parser.add_argument("--no-plugin", **several, help="treat X (NAME, DIST:NAME or KIND:NAME) as absent")
    parser.add_argument("--require", **several, help="exit with 1 unless X is there and can be used")


def run(args: argparse.Namespace) -> int:
    catalog = Catalog.installed(args.no_plugin, args.require)
    candidates = [one for one in catalog.candidates if args.kind in (None, one.kind)]
    if args.explain:
        return _explain([one for one in candidates if one.matches(args.explain)], args)
    if args.check:
        from rlcore.registry.probe import check

        candidates = [probe.candidate for probe in check(candidates, args.timeout)]
    if args.json:
        print_json([one.to_dict() for one in candidates])
    else:
        _print(candidates)
    catalog.required()
    return int(args.strict and any(map(_is_problem, candidates)))


def _is_problem(candidate: Candidate) -> bool:
    return not candidate.sound and candidate.state != "disabled"


def _print(candidates: Sequence[Candidate]) -> None:
    """The table, and under it the reason of each state that is not plain."""
    if not candidates:
        print("no plugins are installed; try: pip install rlcore-rewards")
        return
    rows = [(one.kind, one.name, one.dist, one.version, one.state) for one in candidates]
    print(table(("KIND", "NAME", "DISTRIBUTION", "VERSION", "STATE"), rows))
    for one in candidates:
        if not one.sound:
            print(f"\n{one.place}\n  {one.state}: {one.reason}")
            if one.remedy:
                print(f"  try: {one.remedy}")


def _explain(candidates: Sequence[Candidate], args: argparse.Namespace) -> int:
    """Print all that is known of the plugins that a name means, options included."""
    from rlcore.registry.probe import check

    if not candidates:
        raise fail(args.explain, "no plugin of this name is installed", "rlcore list-plugins shows what is")
    probes = check(candidates, args.timeout)
    if args.json:
        print_json([probe.candidate.to_dict() | {"options": probe.options} for probe in probes])
    else:
        print("\n\n".join(map(_explanation, probes)))
    return int(any(_is_problem(probe.candidate) for probe in probes))


def _explanation(probe: "Probe") -> str:
    one, kind = probe.candidate, KINDS.get(probe.candidate.kind)
    facts = [
        ("plugin", f"{one.kind} {one.name}"),
        ("distribution", f"{one.dist} {one.version}"),
        ("entry point", f"{kind.group if kind else 'unknown group'}: {one.name} = {one.value}"),
        ("state", f"{one.state}{': ' if one.reason else ''}{one.reason}"),
        ("try", one.remedy),
        ("in a recipe", f"{one.name}, or {one.dist}:{one.name}"),
    ]
    rows = [(name, text) for name, text in facts if text]
    for option in probe.options:
        default = "required" if option["default"] is None else f"default {option['default']}"
        rows.append((f"option {option['name']}", f"{option['type']}, {default}. {option['help']}".strip()))
    return table(rows[0], rows[1:])
