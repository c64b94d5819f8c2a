"""What a train step minimises: a policy loss with KL, entropy and importance terms, or supervised likelihood.

An objective gives the loss of each token; what share a token has in the step's loss is decided elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from rlcore.algorithms.importance_sampling import truncated_weights
from rlcore.algorithms.kl import kl_divergence
from rlcore.algorithms.logprob import Entropy, TokenScores
from rlcore.algorithms.reduction import Reduction
from rlcore.config.schema import Algorithm
from rlcore.protocols import LossBatch, PolicyLoss
from rlcore.trainer.batch import MicroBatch


@dataclass(frozen=True)
class TokenLoss:
    """The loss of each response token, shape [t], and per-token metrics to be averaged as the loss is."""

    loss_t: torch.Tensor
    metrics_t: Mapping[str, torch.Tensor]


class Objective(Protocol):
    """Turns scores of a micro-batch's response tokens into a loss for each."""

    @property
    def entropy(self) -> Entropy: ...

    @property
    def reduction(self) -> Reduction: ...

    def token_loss(self, scores: TokenScores, batch: MicroBatch) -> TokenLoss: ...


@dataclass(frozen=True)
class SftObjective:
    """Negative log-likelihood of the response tokens."""

    reduction: Reduction = "token"
    entropy: Entropy = "none"

    def token_loss(self, scores: TokenScores, batch: MicroBatch) -> TokenLoss:
        return TokenLoss(-scores.log_probs_t, {})


@dataclass(frozen=True)
class PolicyObjective:
    """loss = policy loss · importance weight - c_H · entropy + c_KL · KL, per token.

    Without old log-probs a step is on-policy: the ratio is 1 and only its gradient counts.
    """

    loss: PolicyLoss
    algorithm: Algorithm

    @property
    def reduction(self) -> Reduction:
        return self.algorithm.reduction

    @property
    def entropy(self) -> Entropy:
        return "gradient" if self.algorithm.entropy_coefficient else "value"

    def token_loss(self, scores: TokenScores, batch: MicroBatch) -> TokenLoss:
        assert batch.advantages_t is not None
        assert scores.entropy_t is not None
        old_log_probs_t = (
            scores.log_probs_t.detach() if batch.old_log_probs_t is None else batch.old_log_probs_t
        )
        terms = self.loss.terms(
            LossBatch(
                log_probs_t=scores.log_probs_t,
                old_log_probs_t=old_log_probs_t,
                advantages_t=batch.advantages_t,
                loss_mask_t=batch.loss_mask_t,
                sample_t=batch.sample_t,
                rollout_log_probs_t=batch.rollout_log_probs_t,
            )
        )
        metrics_t = {**terms.metrics_t, "entropy": scores.entropy_t.detach()}
        loss_t = terms.loss_t
        sampling = self.algorithm.importance_sampling
        if sampling.enabled and batch.rollout_log_probs_t is not None:
            weights = truncated_weights(old_log_probs_t, batch.rollout_log_probs_t, sampling.low, sampling.high)
            loss_t = loss_t * weights.weight_t
            metrics_t |= weights.metrics_t
        metrics_t["pg_loss"] = loss_t.detach()
        if self.algorithm.entropy_coefficient:
            loss_t = loss_t - self.algorithm.entropy_coefficient * scores.entropy_t
        if batch.ref_log_probs_t is not None:
            kl_t = self._kl(scores.log_probs_t, old_log_probs_t, batch.ref_log_probs_t)
            metrics_t["kl"] = kl_t.detach()
            loss_t = loss_t + self.algorithm.kl.loss_coefficient * kl_t
        return TokenLoss(loss_t, metrics_t)

    def _kl(
        self, log_probs_t: torch.Tensor, old_log_probs_t: torch.Tensor, ref_log_probs_t: torch.Tensor
    ) -> torch.Tensor:
        kl = self.algorithm.kl
        ratio_t = (log_probs_t - old_log_probs_t).exp() if kl.unbiased else None
        return kl_divergence(log_probs_t, ref_log_probs_t, kl.estimator, ratio_t)
