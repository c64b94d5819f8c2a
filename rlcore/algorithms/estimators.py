"""The advantage estimators that come with rlcore: group-relative, leave-one-out, and plain REINFORCE.

A sample's advantage goes to each of its tokens. Samples belong together by their group number, wherever they
stand in the batch.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from rlcore.plugin import advantage_estimator
from rlcore.protocols import AdvantageBatch, Advantages

if TYPE_CHECKING:
    import torch

_STD_EPSILON = 1e-6


class GrpoOptions(BaseModel):
    """Options of `grpo`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    normalize_std: bool = True
    """Divide by the group's standard deviation; off is Dr. GRPO."""


class RlooOptions(BaseModel):
    """`rloo` has no options."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ReinforceOptions(BaseModel):
    """Options of `reinforce`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    baseline: Literal["batch_mean", "none"] = "batch_mean"
    """What is taken from every reward."""


@advantage_estimator(default_loss="clip")
def grpo(batch: AdvantageBatch, options: GrpoOptions) -> Advantages:
    """A = (r - mean) / (std + 1e-6) within the group, std unbiased (GRPO, arXiv:2402.03300).

    Without the division it is Dr. GRPO (arXiv:2503.20783). A group of one sample teaches nothing: A = 0.
    """
    groups = _Groups(batch)
    centred_n = groups.centred_n
    if not options.normalize_std:
        return _per_token(centred_n, batch)
    variance_g = groups.sum(centred_n.square()) / (groups.size_g - 1).clamp(min=1)
    return _per_token(centred_n / (variance_g.sqrt()[groups.of_n] + _STD_EPSILON), batch)


@advantage_estimator(default_loss="clip")
def rloo(batch: AdvantageBatch, options: RlooOptions) -> Advantages:
    """A = r - mean of the other samples of the group = (r - mean) · n / (n - 1) (RLOO, arXiv:2402.14740).

    A group of one has no others and teaches nothing: A = 0.
    """
    groups = _Groups(batch)
    factor_g = groups.size_g / (groups.size_g - 1).clamp(min=1)
    return _per_token(groups.centred_n * factor_g[groups.of_n], batch)


@advantage_estimator(default_loss="clip")
def reinforce(batch: AdvantageBatch, options: ReinforceOptions) -> Advantages:
    """A = r - mean over the batch, or A = r (REINFORCE, doi:10.1007/BF00992696)."""
    rewards_n = batch.rewards_n
    if options.baseline == "batch_mean":
        rewards_n = rewards_n - rewards_n.mean()
    return _per_token(rewards_n, batch)


class _Groups:
    """Rewards by group: `of_n` is each sample's row among the g groups, `size_g` their sizes."""

    def __init__(self, batch: AdvantageBatch) -> None:
        self.of_n = batch.group_n.unique(return_inverse=True)[1]  # type: ignore[no-untyped-call]
        self.size_g = self.of_n.bincount()
        # In float32 equal rewards differ from their mean by a rounding, which a division by as little blows up.
        rewards_n = batch.rewards_n.double()
        mean_g = self.sum(rewards_n) / self.size_g
        self.centred_n = rewards_n - mean_g[self.of_n]

    def sum(self, values_n: "torch.Tensor") -> "torch.Tensor":
        return values_n.new_zeros(len(self.size_g)).index_add(0, self.of_n, values_n)


def _per_token(advantages_n: "torch.Tensor", batch: AdvantageBatch) -> Advantages:
    return Advantages(advantages_t=advantages_n.to(batch.rewards_n).repeat_interleave(batch.lengths_n))
