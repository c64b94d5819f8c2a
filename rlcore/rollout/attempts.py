"""Attempts at groups, and the referee over them: what rewards and filters make of a group that has landed.

Which attempts are made, and when, is decided by those who use this: one rollout (`generation`) or an endless
stream (`stream`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rlcore.data.sample import Sample
from rlcore.errors import RlcoreError, fail
from rlcore.protocols import Drop, FilterContext, SamplingFilter
from rlcore.rollout.responses import Group

if TYPE_CHECKING:
    from rlcore.rollout.rewards import RewardOutcome

# Who has dropped this many times what is wanted asks for no more: the filters may never be content.
PATIENCE = 16


class PromptSource(Protocol):
    """Where groups come from, and where unfinished ones go. An empty list says that there are no more."""

    def next(self, count: int) -> list[Group]: ...

    def put_back(self, groups: Sequence[Group]) -> None: ...


class Scorer(Protocol):
    """Sets the rewards of samples. Raises RlcoreError when a reward's failure shall stop the run."""

    async def score(self, samples: Sequence[Sample]) -> "Sequence[RewardOutcome]": ...


@dataclass(frozen=True)
class Rollout:
    """Groups to train on, in the order in which they were asked for, and the rollout's own metrics."""

    groups: list[Group]
    metrics: dict[str, float]


@dataclass(eq=False)
class Attempt:
    """A group on its way. `outcomes` are missing until it is scored, `kept` says that filters were content."""

    order: int
    group: Group
    errors: list[str] = field(default_factory=list)
    outcomes: "Sequence[RewardOutcome] | None" = None
    kept: bool = False


@dataclass(frozen=True)
class Referee:
    """Scores attempts and lets filters decide about them."""

    scorer: Scorer
    filters: Sequence[SamplingFilter]

    async def score(self, attempt: Attempt) -> None:
        """Set the outcomes, unless a sample has failed. Raises what the scorer raises."""
        if not attempt.errors:
            attempt.outcomes = await self.scorer.score(attempt.group)

    def verdict(self, attempt: Attempt, context: FilterContext) -> Drop | None:
        """The first reason to drop a group; a kept one loses the loss of those whom filters mask out."""
        if attempt.outcomes is None:
            return Drop("failed")
        if any(outcome.drop for outcome in attempt.outcomes):
            return Drop("reward_error")
        for one in self.filters:
            verdict = one.decide(attempt.group, context)
            if isinstance(verdict, Drop):
                return verdict
            for sample in attempt.group:
                if sample.index in verdict.mask_out:
                    sample.loss_mask = [0] * len(sample.tokens)
        return None


def drop_metrics(dropped: Counter[str]) -> dict[str, float]:
    """How many groups were dropped, in all and by reason."""
    by_reason = {f"rollout/groups_dropped/{reason}": count for reason, count in sorted(dropped.items())}
    return {"rollout/groups_dropped": dropped.total(), **by_reason}


def nothing_kept(asked: int, dropped: Counter[str]) -> RlcoreError:
    """The error for prompts or patience that ran out before anything was kept."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
    return fail(
        "rollout",
        f"no group was kept out of {asked} ({reasons or 'there are no prompts'})",
        "loosen the filters, or look at the rewards of rollouts/ with `rlcore reward`",
    )
