"""Candidate: a plugin that somebody offers, as far as metadata tell. The catalog finds and judges them."""

from dataclasses import asdict, dataclass

from rlcore.registry.metadata import canonical
from rlcore.registry.requirements import State


@dataclass(frozen=True)
class Candidate:
    """A plugin as its distribution declares it; `reason` and `remedy` explain any state but found and ok."""

    kind: str
    name: str
    dist: str
    version: str
    value: str
    state: State = "found"
    reason: str = ""
    remedy: str = ""

    @property
    def sound(self) -> bool:
        """Whether nothing that is known speaks against using it."""
        return self.state in ("found", "ok")

    @property
    def place(self) -> str:
        """How messages name it: entry point, distribution and value."""
        return f"{self.kind} {self.name!r} of {self.dist} {self.version} ({self.value})"

    @property
    def trouble(self) -> tuple[str, str]:
        """Message and remedy for the error of one who asks for it in vain."""
        return f"{self.place} is {self.state}: {self.reason}", self.remedy

    def matches(self, selector: str) -> bool:
        """Whether `NAME`, `dist:NAME` or `kind:NAME` means this plugin."""
        prefix, _, name = selector.rpartition(":")
        return name == self.name and (prefix in ("", self.kind) or canonical(prefix) == canonical(self.dist))

    def to_dict(self) -> dict[str, str]:
        """The record that `rlcore list-plugins --json` prints."""
        return asdict(self)
