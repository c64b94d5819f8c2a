"""Truncated importance sampling: corrects for an engine whose probabilities differ from the trainer's."""

import torch


def truncated_weights(
    log_probs_t: torch.Tensor, rollout_log_probs_t: torch.Tensor, low: float, high: float
) -> torch.Tensor:
    """Per-token weights clamp(π_train / π_rollout, low, high), shape [t], without gradient.

    Multiplies the policy loss of each token (https://fengyao.notion.site/off-policy-rl).
    """
    return (log_probs_t - rollout_log_probs_t).detach().exp().clamp(low, high)
