"""Truncated importance sampling: corrects for tokens drawn by other probabilities than the trainer's.

They differ by an engine's arithmetic, and by its weights where generation runs ahead of training.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TruncatedWeights:
    """Per-token weights [t], without gradient, and per-token metrics to be averaged as the loss is."""

    weight_t: torch.Tensor
    metrics_t: Mapping[str, torch.Tensor]


def truncated_weights(
    log_probs_t: torch.Tensor, rollout_log_probs_t: torch.Tensor, low: float, high: float
) -> TruncatedWeights:
    """Weights clamp(π / π_rollout, low, high), which multiply the policy loss of each token.

    π are the trainer's probabilities at the step's start (https://fengyao.notion.site/off-policy-rl). Metrics,
    all [t]: the ratio, its distance |ratio - 1|, and 1 where it was clamped.
    """
    ratio_t = (log_probs_t - rollout_log_probs_t).detach().exp()
    weight_t = ratio_t.clamp(low, high)
    return TruncatedWeights(
        weight_t,
        {
            "importance/ratio": ratio_t,
            "importance/distance": (ratio_t - 1).abs(),
            "importance/clip_fraction": (weight_t != ratio_t).float(),
        },
    )
