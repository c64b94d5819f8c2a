"""How commands print: aligned tables, JSON and problems, with nothing that takes time to import."""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlcore.errors import Problem


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines of left-aligned columns, two spaces apart."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def print_json(data: Any) -> None:
    """Print data for programs, on stdout."""
    import json

    print(json.dumps(data, indent=2, ensure_ascii=False))


def print_problems(problems: "Iterable[Problem]") -> None:
    """Print each problem with its remedy, on stderr."""
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
