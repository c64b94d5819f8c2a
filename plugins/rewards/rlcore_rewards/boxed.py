r"""`math` and `deepscaler`: is the answer in the response's last `\boxed{…}` the reference answer?

`deepscaler` judges only what follows the reasoning (after `</think>`, or after `###Response`); a response
without either scores 0. Both give 1 or 0 and report `format`, whether a boxed answer was found at all.
"""

from pydantic import BaseModel, ConfigDict

from rlcore.plugin import RewardResult, Sample, reward
from rlcore_rewards.answers import same_answer, verified_equal
from rlcore_rewards.text import BOX, label_of, last_boxed


class MathOptions(BaseModel):
    """How `math` compares."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    math_verify: bool = False
    """Also accept what the math-verify library proves equal: unreduced fractions, decimals, sets."""


@reward
def math(sample: Sample, options: MathOptions) -> RewardResult:
    """1 if the boxed answer equals the label by text or by algebra, else 0."""
    return _judge(sample.response, label_of(sample), options.math_verify)


@reward
def deepscaler(sample: Sample) -> RewardResult:
    """Like `math`, on the part of the response that follows the reasoning."""
    return _judge(after_reasoning(sample.response), label_of(sample))


def after_reasoning(response: str) -> str:
    """The text after the last `</think>`, else the section after the first `###Response`, else nothing."""
    if "</think>" in response:
        return response.rpartition("</think>")[2]
    return response.partition("###Response")[2].partition("###Response")[0]


def _judge(text: str, label: str, math_verify: bool = False) -> RewardResult:
    truth = last_boxed(label) if BOX in label else label
    answer = last_boxed(text)
    if answer is None or not truth:
        return RewardResult(0.0, {"format": float(answer is not None)})
    correct = same_answer(answer, truth) or (math_verify and verified_equal(answer, truth))
    return RewardResult(float(correct), {"format": 1.0})
