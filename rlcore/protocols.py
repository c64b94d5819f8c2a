"""What the plugin factories return: the Protocols, and the records that cross them.

`rlcore.hookspecs` names the factories; this page names the work. It imports no torch, so that a plugin
module that needs only types stays light. Tensor names carry their axes: n samples, t response tokens of
all samples laid end to end. Context and result records may gain optional fields, never lose one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from rlcore.errors import Problem

if TYPE_CHECKING:
    import torch

    from rlcore.data.sample import Sample
    from rlcore.layout.plan import Layout


@runtime_checkable
class LayoutValidator(Protocol):
    """A rule about the whole parallel layout, beyond each layer's `may_start_stage`."""

    def validate(self, layout: "Layout") -> Sequence[Problem]:
        """Return every problem of the layout; an empty sequence means that it is legal."""
        ...


@dataclass(frozen=True)
class RewardResult:
    """One sample's verdict: `value` is what training uses, `parts` are logged beside it."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Reward(Protocol):
    """Scores finished samples. An instance lives in a worker process of its own that may be killed."""

    async def score(self, samples: "Sequence[Sample]") -> Sequence[RewardResult]:
        """Return one result per sample, in order."""
        ...


@dataclass(frozen=True)
class FilterContext:
    """Where the rollout stands when a filter decides; counts are groups."""

    step: int
    wanted: int
    kept: int
    in_flight: int
    version: int


@dataclass(frozen=True)
class Keep:
    """Train on the group; samples whose index is in `mask_out` count for the baseline but carry no loss."""

    mask_out: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Drop:
    """Leave the group out and count it under `reason`; `keep_if_short` lets it back in when prompts run out."""

    reason: str
    keep_if_short: bool = False


@runtime_checkable
class SamplingFilter(Protocol):
    """Decides, group by group, what a rollout keeps."""

    def decide(self, group: "Sequence[Sample]", context: FilterContext) -> Keep | Drop: ...


@dataclass(frozen=True)
class AdvantageBatch:
    """What an estimator sees. `group_n` holds one integer per sample, equal within a prompt's group."""

    rewards_n: "torch.Tensor"
    group_n: "torch.Tensor"
    lengths_n: "torch.Tensor"
    loss_mask_t: "torch.Tensor"
    log_probs_t: "torch.Tensor | None" = None
    ref_log_probs_t: "torch.Tensor | None" = None
    values_t: "torch.Tensor | None" = None
    teacher_log_probs_t: "torch.Tensor | None" = None
    greedy_rewards_n: "torch.Tensor | None" = None


@dataclass(frozen=True)
class Advantages:
    """Per response token; `returns_t` only where a value function is trained."""

    advantages_t: "torch.Tensor"
    returns_t: "torch.Tensor | None" = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class AdvantageEstimator(Protocol):
    """Turns rewards into advantages. The driver computes only what `needs` names.

    `needs` is a subset of {"values", "log_probs", "ref_log_probs", "teacher_log_probs", "greedy_baseline"};
    `default_loss` is the policy loss used when the recipe names none.
    """

    needs: frozenset[str]
    default_loss: str

    def estimate(self, batch: AdvantageBatch) -> Advantages: ...


@dataclass(frozen=True)
class LossBatch:
    """What a policy loss sees of one micro-batch, per response token; only `log_probs_t` carries a gradient."""

    log_probs_t: "torch.Tensor"
    old_log_probs_t: "torch.Tensor"
    advantages_t: "torch.Tensor"
    loss_mask_t: "torch.Tensor"
    sample_t: "torch.Tensor"
    rollout_log_probs_t: "torch.Tensor | None" = None


@dataclass(frozen=True)
class LossTerms:
    """The loss of each token, not yet reduced, and per-token metrics to be averaged over the loss mask."""

    loss_t: "torch.Tensor"
    metrics_t: "Mapping[str, torch.Tensor]" = field(default_factory=dict)


@runtime_checkable
class PolicyLoss(Protocol):
    """A policy-gradient surrogate, applied per token. `needs` is a subset of {"rollout_log_probs"}."""

    needs: frozenset[str]

    def terms(self, batch: LossBatch) -> LossTerms: ...
