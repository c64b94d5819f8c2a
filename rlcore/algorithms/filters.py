"""The sampling filters that come with rlcore."""

from collections.abc import Sequence
from statistics import stdev

from pydantic import BaseModel, ConfigDict

from rlcore.data.sample import Sample
from rlcore.plugin import sampling_filter
from rlcore.protocols import Drop, FilterContext, Keep

_SAME = 1e-6


class NonzeroStdOptions(BaseModel):
    """Options of `nonzero_std`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    keep_if_short: bool = False
    """Let dropped groups back in when there are not enough others."""


@sampling_filter
def nonzero_std(group: Sequence[Sample], context: FilterContext, options: NonzeroStdOptions) -> Keep | Drop:
    """Drop groups whose rewards are all equal: group-relative advantages learn nothing from them.

    (Dynamic sampling, DAPO, arXiv:2503.14476.) A group of one has no spread to judge and is kept.
    """
    rewards = [sample.reward or 0.0 for sample in group]
    if len(rewards) < 2 or stdev(rewards) > _SAME:
        return Keep()
    return Drop(f"zero_std_{rewards[0]:.1f}", keep_if_short=options.keep_if_short)
