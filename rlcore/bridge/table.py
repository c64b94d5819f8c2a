"""WeightBridge: one table of which tensors of a checkpoint make which Megatron parameter.

Import, export, verification and weight transport all read it. Names are templates: `{layer}` and the like are
filled in from a row's `over`. A tensor that no row claims, on either side, is an error.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product

from rlcore.bridge.transforms import Replicated, Transform
from rlcore.errors import Problem, raise_if_any

Over = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Map:
    """These tensors of the checkpoint make this parameter. `optional`: both sides may lack them.

    `kept`: a model may be built without the parameter; its tensors then pass through.
    """

    hf: str | tuple[str, ...]
    megatron: str
    transform: Transform = field(default_factory=Replicated)
    over: Over = field(default_factory=dict)
    optional: bool = False
    kept: bool = False


@dataclass(frozen=True)
class Derived:
    """A tensor that repeats another one of the checkpoint: not read, written again where the source had it."""

    hf: str
    of: str
    over: Over = field(default_factory=dict)


@dataclass(frozen=True)
class PassThrough:
    """Tensors (a name with wildcards) that are not trained: a saved checkpoint takes them from its source."""

    hf: str


@dataclass(frozen=True)
class Ignore:
    """Tensors (a name with wildcards) that no one needs, on the side that has them, and why."""

    hf: str
    reason: str


Row = Map | Derived | PassThrough | Ignore


@dataclass(frozen=True)
class Entry:
    """One parameter of a Map with all indices filled in."""

    hf: tuple[str, ...]
    megatron: str
    transform: Transform
    optional: bool
    kept: bool


@dataclass(frozen=True)
class Coverage:
    """What is left over when a checkpoint's names meet a model's, each with the reason."""

    unmapped_hf: Mapping[str, str]
    unmapped_megatron: Mapping[str, str]

    def problems(self, place: str) -> Iterator[Problem]:
        for name, reason in {**self.unmapped_hf, **self.unmapped_megatron}.items():
            yield Problem(place, f"{name} {reason}")


@dataclass(frozen=True)
class WeightBridge:
    """The mapping table of one checkpoint."""

    rows: tuple[Row, ...]

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """All maps, indices filled in, in table order. Raises RlcoreError where two claim one name."""
        entries = tuple(entry for row in self.rows if isinstance(row, Map) for entry in _entries(row))
        names = [name for entry in entries for name in (*entry.hf, entry.megatron)]
        twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()
        raise_if_any(Problem("weight bridge", f"two rows claim {name}") for name in sorted(twice))
        return entries

    @cached_property
    def by_megatron(self) -> Mapping[str, Entry]:
        return {entry.megatron: entry for entry in self.entries}

    @cached_property
    def by_hf(self) -> Mapping[str, Entry]:
        return {name: entry for entry in self.entries for name in entry.hf}

    @cached_property
    def derived(self) -> Mapping[str, str]:
        """Repeated tensors of the checkpoint, each with the name of what it repeats."""
        return {
            row.hf.format(**index): row.of.format(**index)
            for row in self.rows
            if isinstance(row, Derived)
            for index in _indices(row.over)
        }

    def passes_through(self, name: str) -> bool:
        """Whether an export takes this tensor from the source checkpoint unless the model gives it."""
        entry = self.by_hf.get(name)
        return entry.kept if entry else self._matches(PassThrough, name)

    def ignores(self, name: str) -> bool:
        return self._matches(Ignore, name)

    def _matches(self, kind: type, name: str) -> bool:
        return any(fnmatchcase(name, row.hf) for row in self.rows if isinstance(row, kind))

    def coverage(self, hf_names: Iterable[str], megatron_names: Iterable[str]) -> Coverage:
        """Compare a checkpoint's tensor names and a whole model's parameter names with the table."""
        hf, megatron = set(hf_names), set(megatron_names)
        needed = {entry.megatron for entry in self.entries if not (entry.optional or entry.kept)}
        return Coverage(
            {name: reason for name in sorted(hf) if (reason := self._why_unmapped_hf(name, megatron))},
            {
                name: reason
                for name in sorted(megatron | needed)
                if (reason := self._why_unmapped_megatron(name, hf, megatron))
            },
        )

    def _why_unmapped_hf(self, name: str, megatron: set[str]) -> str:
        if entry := self.by_hf.get(name):
            has_place = entry.kept or entry.megatron in megatron
            return "" if has_place else f"belongs to {entry.megatron}, which the model lacks"
        if name in self.derived or self.passes_through(name) or self.ignores(name):
            return ""
        return "is in the checkpoint, but no row of the bridge claims it"

    def _why_unmapped_megatron(self, name: str, hf: set[str], megatron: set[str]) -> str:
        entry = self.by_megatron.get(name)
        if entry is None:
            return "is in the model, but no row of the bridge claims it"
        absent = [source for source in entry.hf if source not in hf]
        if name not in megatron:
            return "stands in the bridge, but neither checkpoint nor model has it" if absent else ""
        return f"needs {', '.join(absent)}, which the checkpoint lacks" if absent else ""


def _entries(row: Map) -> Iterator[Entry]:
    sources = (row.hf,) if isinstance(row.hf, str) else row.hf
    for index in _indices(row.over):
        hf = tuple(name.format(**index) for name in sources)
        yield Entry(hf, row.megatron.format(**index), row.transform, row.optional, row.kept)


def _indices(over: Over) -> Iterator[dict[str, int]]:
    for values in product(*over.values()):
        yield dict(zip(over, values, strict=True))
