"""The reward runner: what finished samples are worth, by the rewards that a recipe selects.

Rewards run in worker processes (`reward_process`), so that none can stall, crash or slow the run. Here it
is decided which reward scores which sample, how values add up, and what a failure means.
"""

import asyncio
import json
import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlcore.config.section import RewardPolicy, RewardsByMetadata, UseReward
from rlcore.data.datasets import Row, first_problems
from rlcore.data.sample import Sample
from rlcore.errors import Problem, RlcoreError, fail, raise_if_any
from rlcore.registry import Catalog, lock
from rlcore.registry.loading import Plugin
from rlcore.rollout.reward_process import RewardPool, Verdict, all_or_first_error
from rlcore.rollout.reward_worker import Order


@dataclass(frozen=True)
class SelectedReward:
    """A reward as a recipe selects it, loaded and its options checked. `place` is the recipe's key."""

    use: UseReward
    plugin: Plugin
    place: str

    @classmethod
    def load(cls, use: UseReward, catalog: Catalog, place: str) -> "SelectedReward":
        """Load the plugin and check the options; raises RlcoreError."""
        plugin = catalog.load("reward", use.use, place)
        plugin.parse_options(use.options, f"{place}.options")
        return cls(use, plugin, place)

    @property
    def order(self) -> Order:
        """What its worker processes are told."""
        candidate = self.plugin.candidate
        return Order(
            plugin=f"{candidate.dist}:{candidate.name}",
            options=self.use.options,
            timeout=self.use.timeout,
            locked=lock.make([self.plugin])[0],
            place=self.place,
            sys_path=tuple(sys.path),
        )


@dataclass(frozen=True)
class RewardOutcome:
    """What one sample is worth. `parts` holds each reward's own value under its name and its parts under
    `<reward>/<part>`; `error` says why a reward has none; `drop` asks for the sample's group to be left out."""

    value: float
    parts: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None
    drop: bool = False


class RewardRunner:
    """Scores samples by a weighted list of rewards, or by the one that each sample's metadata names.

    With `key`, `sample.metadata[key]` is the name of the sample's only reward. Worker processes start at
    construction and load in the background. A runner belongs to one event loop; close it when done.
    `failures` is a file to which a sample that stops the run is written, ready for `rlcore reward`.
    """

    def __init__(
        self, selections: Sequence[SelectedReward], key: str | None = None, failures: Path | None = None
    ) -> None:
        self.key = key
        self._failures = failures
        self._selections = dict(zip(_distinct_names(selections), selections, strict=True))
        self._pools = {
            name: RewardPool(one.order, one.use.concurrency) for name, one in self._selections.items()
        }

    @classmethod
    def from_recipe(
        cls,
        rewards: Sequence[UseReward] | RewardsByMetadata,
        catalog: Catalog,
        place: str = "rewards",
        failures: Path | None = None,
    ) -> "RewardRunner":
        """Load what a recipe selects; raises one RlcoreError for all rewards that cannot be used."""
        return cls(select(rewards, catalog, place), getattr(rewards, "key", None), failures)

    @property
    def plugins(self) -> list[Plugin]:
        """The plugins in use, for the run's lock file."""
        return [one.plugin for one in self._selections.values()]

    def check_dataset(self, rows: Iterable[Row]) -> None:
        """Raise RlcoreError naming the rows whose metadata selects no reward of the recipe."""
        problems = (self._unknown_reward(row.metadata, row.place) for row in rows)
        raise_if_any(first_problems([problem for problem in problems if problem]))

    async def score(self, samples: Sequence[Sample]) -> list[RewardOutcome]:
        """Score samples, set their `reward` and `reward_parts`, and return one outcome each, in order.

        Samples of one group go to a reward in one call. Raises RlcoreError naming reward, sample and cause
        when a sample fails under the policy `fail`; other samples are then left without a verdict.
        """
        unknown = (self._unknown_reward(sample.metadata, _identity(sample)) for sample in samples)
        raise_if_any(problem for problem in unknown if problem)
        work = [(name, group) for name in self._pools for group in self._groups(name, samples)]
        scored = await all_or_first_error(self._score_group(name, group) for name, group in work)
        found: dict[int, dict[str, Verdict]] = {id(sample): {} for sample in samples}
        for (name, group), verdicts in zip(work, scored, strict=True):
            for sample, verdict in zip(group, verdicts, strict=True):
                found[id(sample)][name] = verdict
        outcomes = [self._outcome(found[id(sample)]) for sample in samples]
        for sample, outcome in zip(samples, outcomes, strict=True):
            sample.reward, sample.reward_parts = outcome.value, outcome.parts
        return outcomes

    async def close(self) -> None:
        """End all worker processes."""
        await asyncio.gather(*(pool.close() for pool in self._pools.values()))

    def _groups(self, name: str, samples: Sequence[Sample]) -> Iterable[list[Sample]]:
        """The samples that a reward scores, by group."""
        groups: dict[int, list[Sample]] = {}
        for sample in samples:
            if self.key is None or sample.metadata[self.key] == name:
                groups.setdefault(sample.group, []).append(sample)
        return groups.values()

    def _unknown_reward(self, metadata: Mapping[str, Any], place: str) -> Problem | None:
        """The problem of metadata that should name a reward of the recipe and does not."""
        if self.key is None or metadata.get(self.key) in list(self._pools):
            return None
        given = f"is {metadata[self.key]!r}" if self.key in metadata else "is missing"
        message = f"metadata {self.key!r} {given}, which selects no reward of the recipe"
        return Problem(place, message, f"one of {', '.join(self._pools)}, or add it under rewards.allowed")

    async def _score_group(self, name: str, group: list[Sample]) -> list[Verdict]:
        verdicts = [_finite(verdict) for verdict in await self._pools[name].score(group)]
        if self._selections[name].use.on_error == "fail":
            for sample, verdict in zip(group, verdicts, strict=True):
                if verdict.error:
                    raise self._failure(name, sample, verdict.error)
        return verdicts

    def _failure(self, name: str, sample: Sample, cause: str) -> RlcoreError:
        file = "SAMPLES.jsonl"
        if self._failures:
            file = str(self._failures)
            with self._failures.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(sample.to_dict()) + "\n")
        selection = self._selections[name]
        settings = [f"{key}={json.dumps(value)}" for key, value in selection.use.options.items()]
        options = [word for setting in settings for word in ("--set", setting)]
        command = shlex.join(["rlcore", "reward", selection.use.use, file, *options])
        return fail(
            f"{selection.place} ({name})",
            f"{_identity(sample)} could not be scored: {cause}",
            f"`{command}` on that sample shows it again; on_error: zero or drop goes on without it",
        )

    def _outcome(self, verdicts: Mapping[str, Verdict]) -> RewardOutcome:
        errors = {name: verdict.error for name, verdict in verdicts.items() if verdict.error}
        parts: dict[str, float] = {}
        for name, verdict in verdicts.items():
            parts[name] = verdict.value
            parts |= {f"{name}/{part}": value for part, value in verdict.parts.items()}
        weighted = (self._selections[name].use.weight * verdict.value for name, verdict in verdicts.items())
        return RewardOutcome(
            value=math.fsum(weighted),
            parts=parts,
            seconds=sum(verdict.seconds for verdict in verdicts.values()),
            error="; ".join(f"{name}: {error}" for name, error in errors.items()) or None,
            drop=any(self._selections[name].use.on_error == "drop" for name in errors),
        )


def select(
    rewards: Sequence[UseReward] | RewardsByMetadata, catalog: Catalog, place: str = "rewards"
) -> list[SelectedReward]:
    """Load every reward that a recipe selects; raises one RlcoreError for all that cannot be used."""
    selected: list[SelectedReward] = []
    problems: list[Problem] = []
    for where, use in _uses(rewards, place):
        try:
            selected.append(SelectedReward.load(use, catalog, where))
        except RlcoreError as error:
            problems.extend(error.problems)
    raise_if_any(problems)
    return selected


def _uses(rewards: Sequence[UseReward] | RewardsByMetadata, place: str) -> list[tuple[str, UseReward]]:
    """Each reward with its key in the recipe."""
    if not isinstance(rewards, RewardsByMetadata):
        return [(f"{place}.{number}", use) for number, use in enumerate(rewards)]
    policy = {name: getattr(rewards, name) for name in RewardPolicy.model_fields}
    return [
        (f"{place}.allowed.{name}", UseReward(use=name, options=options, **policy))
        for name, options in rewards.allowed.items()
    ]


def _distinct_names(selections: Sequence[SelectedReward]) -> list[str]:
    """Names in metrics: those of the recipe, numbered from the second time on that one occurs."""
    names: list[str] = []
    for one in selections:
        times = sum(one.use.use == earlier.use.use for earlier in selections[: len(names)])
        names.append(f"{one.use.use}-{times + 1}" if times else one.use.use)
    return names


def _finite(verdict: Verdict) -> Verdict:
    """A value that is no number is an error: it would poison the whole batch's advantages."""
    numbers = {"value": verdict.value, **verdict.parts}
    bad = [f"{name} is {number}" for name, number in numbers.items() if not math.isfinite(number)]
    return Verdict(seconds=verdict.seconds, error=", ".join(bad)) if bad else verdict


def _identity(sample: Sample) -> str:
    return f"sample {sample.index} of group {sample.group}"
