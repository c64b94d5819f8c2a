"""From scored groups to a training batch: advantages and log-probs beside each sample's tokens."""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch

from rlcore.algorithms.advantages import subtract_kl, whiten
from rlcore.algorithms.kl import kl_divergence
from rlcore.config.schema import Algorithm
from rlcore.data.sample import Sample
from rlcore.protocols import AdvantageBatch, AdvantageEstimator

if TYPE_CHECKING:
    from rlcore.protocols import Advantages


def estimate_advantages(
    samples: Sequence[Sample],
    estimator: AdvantageEstimator,
    algorithm: Algorithm,
    log_probs: Sequence[torch.Tensor] | None,
    ref_log_probs: Sequence[torch.Tensor] | None,
) -> "tuple[list[torch.Tensor], Advantages]":
    """Return one tensor of advantages per sample, shape [response tokens], and what the estimator said.

    `log_probs` and `ref_log_probs` hold one tensor per sample, of the trainer's policy and of the reference.
    """
    lengths_n = torch.tensor([len(sample.tokens) for sample in samples])
    mask_t = torch.tensor(
        list(chain.from_iterable(sample.loss_mask for sample in samples)), dtype=torch.float32
    )
    log_probs_t = None if log_probs is None else torch.cat(list(log_probs))
    ref_log_probs_t = None if ref_log_probs is None else torch.cat(list(ref_log_probs))
    estimate = estimator.estimate(
        AdvantageBatch(
            rewards_n=torch.tensor([sample.reward for sample in samples], dtype=torch.float32),
            group_n=torch.tensor([sample.group for sample in samples]),
            lengths_n=lengths_n,
            loss_mask_t=mask_t,
            log_probs_t=log_probs_t,
            ref_log_probs_t=ref_log_probs_t,
        )
    )
    advantages_t = estimate.advantages_t
    if algorithm.kl.reward_coefficient and log_probs_t is not None and ref_log_probs_t is not None:
        kl_t = kl_divergence(log_probs_t, ref_log_probs_t, algorithm.kl.estimator)
        advantages_t = subtract_kl(advantages_t, kl_t, algorithm.kl.reward_coefficient)
    if algorithm.normalize_advantages:
        advantages_t = whiten(advantages_t, mask_t)
    return list(advantages_t.split(lengths_n.tolist())), estimate


def split_updates(samples: Sequence[Sample], global_batch_size: int) -> list[list[int]]:
    """Cut a rollout into optimizer steps of `global_batch_size` samples; a remainder makes a smaller last."""
    positions = range(len(samples))
    return [list(positions[start : start + global_batch_size]) for start in positions[::global_batch_size]]
