"""`exact`: is the response, or what a pattern finds in it, the label?"""

import re

from pydantic import BaseModel, ConfigDict

from rlcore.plugin import RewardResult, Sample, reward
from rlcore_rewards.text import label_of


class ExactOptions(BaseModel):
    """What `exact` compares, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    strip: bool = True
    """Ignore white space around response and label."""
    ignore_case: bool = False
    """Ignore the difference between upper and lower case."""
    pattern: re.Pattern[str] | None = None
    """Regular expression whose last match (its first group, if any) is compared instead of the response."""


@reward
def exact(sample: Sample, options: ExactOptions) -> RewardResult:
    """1 if the texts are equal, else 0; with a pattern, `format` says whether it matched."""
    label = _prepared(label_of(sample), options)
    if options.pattern is None:
        return RewardResult(float(_prepared(sample.response, options) == label))
    matches = list(options.pattern.finditer(sample.response))
    if not matches:
        return RewardResult(0.0, {"format": 0.0})
    found = matches[-1][1 if options.pattern.groups else 0] or ""
    return RewardResult(float(_prepared(found, options) == label), {"format": 1.0})


def _prepared(text: str, options: ExactOptions) -> str:
    text = text.strip() if options.strip else text
    return text.casefold() if options.ignore_case else text
