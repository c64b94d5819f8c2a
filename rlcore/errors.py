"""Errors that reach a user: each names a place, what is wrong there, and what would work.

The command line prints them without a traceback and exits with 1. Code that finds several problems
collects them and raises once, so that a user repairs a recipe in one pass.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `place` is a file and line, a recipe key, or a plugin."""

    place: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"\n    try: {self.remedy}" if self.remedy else ""
        return f"{self.place}: {self.message}{remedy}"


class RlcoreError(Exception):
    """A failure that the user can mend; carries every problem found."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def fail(place: str, message: str, remedy: str = "") -> RlcoreError:
    """Make the error for a single problem: `raise fail(place, message, remedy)`."""
    return RlcoreError(Problem(place, message, remedy))


def raise_if_any(problems: Iterable[Problem]) -> None:
    """Raise one RlcoreError for all problems, or return if there are none."""
    if found := tuple(problems):
        raise RlcoreError(found)
