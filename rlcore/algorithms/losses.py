"""The policy losses that come with rlcore: PPO's clip, GSPO and CISPO, each per token and not yet reduced.

r = π / π_old is the importance ratio. Metrics are per token as well, averaged over the loss mask later.
"""

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat

from rlcore.plugin import policy_loss
from rlcore.protocols import LossBatch, LossTerms

if TYPE_CHECKING:
    import torch


class ClipOptions(BaseModel):
    """Options of `clip`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    eps_clip: NonNegativeFloat = 0.2
    """The ratio is clipped below at 1 - eps_clip."""
    eps_clip_high: NonNegativeFloat | None = None
    """The ratio is clipped above at 1 + eps_clip_high; by default eps_clip (larger is DAPO's clip-higher)."""
    eps_clip_c: float | None = Field(None, gt=1)
    """Dual clip: where the advantage is negative the loss is at most eps_clip_c · |advantage|."""


class GspoOptions(BaseModel):
    """Options of `gspo`; the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    eps_clip: NonNegativeFloat = 3e-4
    """The sequence's ratio is clipped below at 1 - eps_clip."""
    eps_clip_high: NonNegativeFloat = 4e-4
    """The sequence's ratio is clipped above at 1 + eps_clip_high."""


class CispoOptions(BaseModel):
    """Options of `cispo`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    eps_clip: NonNegativeFloat = 1.0
    """The weight is clipped below at 1 - eps_clip; 1 sets no lower bound, as in the paper."""
    eps_clip_high: NonNegativeFloat = 4.0
    """The weight is clipped above at 1 + eps_clip_high."""


@policy_loss
def clip(batch: LossBatch, options: ClipOptions) -> LossTerms:
    """max(-r·A, -clip(r, 1 - ε, 1 + ε_high)·A) (PPO, arXiv:1707.06347; clip-higher, arXiv:2503.14476).

    With `eps_clip_c` also min(…, -c·A) where A < 0 (dual-clip PPO, arXiv:1912.09729).
    """
    high = options.eps_clip if options.eps_clip_high is None else options.eps_clip_high
    ratio_t = (batch.log_probs_t - batch.old_log_probs_t).exp()
    loss_t, clipped_t = _clipped(ratio_t, batch.advantages_t, options.eps_clip, high)
    if options.eps_clip_c is not None:
        bounded_t = loss_t.minimum(-options.eps_clip_c * batch.advantages_t)
        loss_t = bounded_t.where(batch.advantages_t < 0, loss_t)
    return LossTerms(loss_t, {"clip_fraction": clipped_t, "ratio": ratio_t.detach()})


@policy_loss
def gspo(batch: LossBatch, options: GspoOptions) -> LossTerms:
    """PPO's clip on the ratio of the whole sequence, (π(y) / π_old(y))^(1/|y|) (GSPO, arXiv:2507.18071)."""
    ratio_t = _sample_mean(batch.log_probs_t - batch.old_log_probs_t, batch).exp()
    loss_t, clipped_t = _clipped(ratio_t, batch.advantages_t, options.eps_clip, options.eps_clip_high)
    return LossTerms(loss_t, {"clip_fraction": clipped_t, "ratio": ratio_t.detach()})


@policy_loss
def cispo(batch: LossBatch, options: CispoOptions) -> LossTerms:
    """-sg(clip(r, 1 - ε, 1 + ε_high))·A·log π clips the weight, not the gradient (CISPO, arXiv:2506.13585)."""
    ratio_t = (batch.log_probs_t - batch.old_log_probs_t).detach().exp()
    weight_t = ratio_t.clamp(1 - options.eps_clip, 1 + options.eps_clip_high)
    loss_t = -weight_t * batch.advantages_t * batch.log_probs_t
    return LossTerms(loss_t, {"clip_fraction": (weight_t != ratio_t).float(), "ratio": ratio_t})


def _clipped(
    ratio_t: "torch.Tensor", advantages_t: "torch.Tensor", low: float, high: float
) -> "tuple[torch.Tensor, torch.Tensor]":
    """PPO's pessimistic loss, and 1 for each token whose clipped side won."""
    free_t = -ratio_t * advantages_t
    bound_t = -ratio_t.clamp(1 - low, 1 + high) * advantages_t
    return free_t.maximum(bound_t), (bound_t > free_t).float()


def _sample_mean(values_t: "torch.Tensor", batch: LossBatch) -> "torch.Tensor":
    """Masked mean over each sample's tokens, laid out per token again."""
    mask_t = batch.loss_mask_t.to(values_t.dtype)
    zeros_n = values_t.new_zeros(int(batch.sample_t.max()) + 1 if len(batch.sample_t) else 0)
    sums_n = zeros_n.index_add(0, batch.sample_t, values_t * mask_t)
    counts_n = zeros_n.index_add(0, batch.sample_t, mask_t).clamp(min=1)
    return (sums_n / counts_n)[batch.sample_t]
