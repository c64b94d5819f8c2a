"""Adds up what micro-batches report, on this rank and over all, into the metrics of a step."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from rlcore.algorithms.logprob import TokenScores
from rlcore.models.measures import COUNT
from rlcore.trainer.batch import MicroBatch
from rlcore.trainer.drafts import Drafts, rates
from rlcore.trainer.objectives import TokenLoss


@dataclass(frozen=True)
class Tally:
    """Sums and maxima of one micro-batch; scalars stay tensors, so that no device is waited for."""

    sums: Mapping[str, torch.Tensor]
    maxima: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Totals:
    """Sums and maxima of many micro-batches, as numbers that can cross processes."""

    sums: Mapping[str, float] = field(default_factory=dict)
    maxima: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, tallies: Sequence[Tally]) -> "Totals":
        """Read the micro-batches of this rank from their device, all at once."""
        scalars = [value for one in tallies for value in (*one.sums.values(), *one.maxima.values())]
        if not scalars:
            return cls()
        numbers = iter(torch.stack([scalar.float() for scalar in scalars]).tolist())

        def read(named: Mapping[str, torch.Tensor]) -> dict[str, float]:
            return {name: next(numbers) for name in named}

        return cls.merge(cls(sums=read(one.sums), maxima=read(one.maxima)) for one in tallies)

    @classmethod
    def merge(cls, totals: Iterable["Totals"]) -> "Totals":
        """Add up; what some lack counts as nothing there."""
        sums, maxima = defaultdict(list), defaultdict(list)
        for one in totals:
            for name, value in one.sums.items():
                sums[name].append(value)
            for name, value in one.maxima.items():
                maxima[name].append(value)
        return cls(
            {name: math.fsum(values) for name, values in sums.items()},
            {name: max(values, key=_nan_above_all) for name, values in maxima.items()},
        )


def _nan_above_all(value: float) -> float:
    return math.inf if math.isnan(value) else value


@torch.no_grad()
def tally(scores: TokenScores, loss: TokenLoss, batch: MicroBatch, drafts: Drafts | None = None) -> Tally:
    """What one micro-batch adds to the step. Per-token metrics count by the token's share in the loss."""
    weight_t = batch.weight_t
    sums = {name: (weight_t * value_t).sum() for name, value_t in loss.metrics_t.items()}
    sums |= {
        "loss": (weight_t * loss.loss_t).sum(),
        "weight": weight_t.sum(),
        "tokens": batch.loss_mask_t.sum(),
    }
    maxima = {}
    if drafts is not None:
        sums |= drafts.sums(scores.log_probs_t, weight_t, batch.loss_mask_t)
    if batch.old_log_probs_t is not None:
        ratio_t = (scores.log_probs_t - batch.old_log_probs_t).exp()
        maxima["ratio_max"] = (ratio_t * batch.loss_mask_t).max()
    return Tally(sums, maxima)


def summary(totals: Totals) -> dict[str, float]:
    """The step's metrics: `loss`, `tokens`, means of per-token metrics, the log-prob gap in nats, the share of
    tokens for which sparse attention selected otherwise than in the engine, and what layers measured."""
    sums = dict(totals.sums)
    tokens, weight = sums.pop("tokens"), sums.pop("weight")
    found = {"loss": sums.pop("loss"), "tokens": tokens}
    maxima = dict(totals.maxima)
    if "gap" in sums:
        gap, compared = sums.pop("gap"), sums.pop("compared")
        if compared:
            found["logprob_gap/mean"] = gap / compared
        else:
            # No token is of these weights: there is no gap to be measured.
            maxima.pop("logprob_gap/max", None)
    if "flips" in sums:
        found["dsa/selection_flips"] = sums.pop("flips") / max(sums.pop("selected"), 1.0)
    if "mtp/drafted" in sums:
        own = {name: sums.pop(name) for name in list(sums) if name.startswith("mtp/")}
        found |= rates(own)
    for name in [name.removesuffix(COUNT) for name in sums if name.endswith(COUNT)]:
        found[name] = sums.pop(name) / (sums.pop(f"{name}{COUNT}") or 1.0)
    found |= {name: value / weight if weight else 0.0 for name, value in sums.items()}
    return found | maxima
