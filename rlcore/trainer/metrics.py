"""Adds up what micro-batches report into the metrics of a step: weighted means, plain means and maxima."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from rlcore.algorithms.logprob import TokenScores
from rlcore.trainer.batch import MicroBatch
from rlcore.trainer.objectives import TokenLoss


@dataclass
class Tally:
    """Sums and maxima of one micro-batch, or of many; scalars stay tensors, so that no device is waited for."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    maxima: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def merge(cls, tallies: Sequence["Tally"]) -> "Tally":
        sums = [tally.sums for tally in tallies]
        maxima = [tally.maxima for tally in tallies]
        return cls(
            {name: torch.stack([one[name] for one in sums]).sum() for name in sums[0]},
            {name: torch.stack([one[name] for one in maxima]).amax() for name in maxima[0]},
        )


@torch.no_grad()
def tally(scores: TokenScores, loss: TokenLoss, batch: MicroBatch) -> Tally:
    """What one micro-batch adds to the step. Per-token metrics count by the token's share in the loss."""
    weight_t = batch.weight_t
    sums = {name: (weight_t * value_t).sum() for name, value_t in loss.metrics_t.items()}
    sums |= {
        "loss": (weight_t * loss.loss_t).sum(),
        "weight": weight_t.sum(),
        "tokens": batch.loss_mask_t.sum(),
    }
    maxima = {}
    if batch.old_log_probs_t is not None:
        ratio_t = (scores.log_probs_t - batch.old_log_probs_t).exp()
        maxima["ratio_max"] = (ratio_t * batch.loss_mask_t).max()
    if batch.rollout_log_probs_t is not None:
        before_t = scores.log_probs_t if batch.old_log_probs_t is None else batch.old_log_probs_t
        gap_t = (before_t - batch.rollout_log_probs_t).abs()
        fresh_t = batch.loss_mask_t if batch.fresh_t is None else batch.loss_mask_t * batch.fresh_t
        sums |= {"gap": (gap_t * fresh_t).sum(), "fresh": fresh_t.sum()}
        maxima["logprob_gap/max"] = (gap_t * fresh_t).max()
    return Tally(sums, maxima)


def summary(total: Tally) -> dict[str, float]:
    """The step's metrics: `loss`, `tokens`, each per-token metric's mean, and the log-prob gap in nats."""
    sums = _numbers(total.sums)
    tokens, weight = sums.pop("tokens"), sums.pop("weight")
    found = {"loss": sums.pop("loss"), "tokens": tokens}
    if "gap" in sums:
        found["logprob_gap/mean"] = sums.pop("gap") / max(sums.pop("fresh"), 1.0)
    found |= {name: value / weight if weight else 0.0 for name, value in sums.items()}
    return found | _numbers(total.maxima)


def _numbers(scalars: Mapping[str, torch.Tensor]) -> dict[str, float]:
    if not scalars:
        return {}
    return dict(zip(scalars, torch.stack(list(scalars.values())).tolist(), strict=True))
