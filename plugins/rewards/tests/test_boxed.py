"""`math` and `deepscaler`: where the answer stands, and what it is worth."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rlcore_rewards.boxed import MathOptions, deepscaler, math
from rlcore_rewards.text import last_boxed

from rlcore.config.section import UseReward
from rlcore.plugin import RewardResult, Sample
from rlcore.registry import Catalog
from rlcore.rollout.rewards import RewardRunner

GSM8K = Path(__file__).with_name("gsm8k_labels.txt").read_text().split("\n", 1)[1].split()


def judged_by_math(response: str, label: str | None, **options: bool) -> RewardResult:
    return math(sample=Sample("p", response=response, label=label), options=MathOptions(**options))


def judged_by_deepscaler(response: str, label: str | None) -> RewardResult:
    return deepscaler(sample=Sample("p", response=response, label=label))


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{1} or rather \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}} done", r"\frac{1}{2}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{}", ""),
        (r"\boxed 5", None),
        (r"\boxed{5", None),
        (r"\boxed{1} then \boxed{2", None),
        ("5", None),
    ],
)
def test_the_last_box_counts(text, content):
    assert last_boxed(text) == content


BALANCED = st.recursive(st.text(alphabet="ab1 \\"), lambda inner: inner.map(lambda text: f"x{{{text}}}y"))


@given(st.text(alphabet="ab{}\\ "), BALANCED, st.text(alphabet="ab{}"))
def test_what_is_boxed_last_is_found_whatever_stands_around(before, content, after):
    assert last_boxed(f"{before}\\boxed{{{content}}}{after}") == content


def test_every_reference_answer_of_gsm8k_is_right_when_boxed():
    assert [label for label in GSM8K if not judged_by_math(f"so \\boxed{{{label}}}.", label).value] == []


def test_every_reference_answer_of_gsm8k_is_right_when_boxed_after_reasoning():
    response = "<think>hm</think> so \\boxed{{{}}}."
    assert [label for label in GSM8K if not judged_by_deepscaler(response.format(label), label).value] == []


@pytest.mark.parametrize(
    ("response", "label", "value", "found"),
    [
        (r"\boxed{5}", "5", 1, 1),
        (r"\boxed{5}", r"\boxed{5}", 1, 1),
        (r"\boxed{6}", "5", 0, 1),
        ("5", "5", 0, 0),
        (r"\boxed{}", "", 0, 1),
    ],
)
def test_math_compares_the_box_with_the_label_boxed_or_not(response, label, value, found):
    assert judged_by_math(response, label) == RewardResult(value, {"format": found})


def test_math_verify_is_asked_only_on_request():
    assert judged_by_math(r"\boxed{2/4}", "1/2").value == 0
    assert judged_by_math(r"\boxed{2/4}", "1/2", math_verify=True).value == 1


@pytest.mark.parametrize(
    ("response", "value"),
    [
        (r"<think>\boxed{1}</think>\boxed{5}", 1),
        (r"<think>\boxed{5}</think>five", 0),
        (r"a</think>\boxed{1}</think>\boxed{5}", 1),
        (r"###Response \boxed{5}", 1),
        (r"###Response \boxed{5} ###Response \boxed{1}", 1),
        (r"\boxed{5}", 0),
    ],
)
def test_deepscaler_reads_only_what_follows_the_reasoning(response, value):
    assert judged_by_deepscaler(response, "5").value == value


@pytest.mark.parametrize("judge", [judged_by_math, judged_by_deepscaler])
def test_a_sample_without_a_label_is_an_error(judge):
    with pytest.raises(ValueError, match="no label"):
        judge(r"</think>\boxed{5}", None)


def test_an_answer_that_sympy_never_finishes_is_killed_and_counts_as_wrong():
    responses = [r"\boxed{1/3}", r"\boxed{(10^9)!}", r"\boxed{1/3}"]
    samples = [Sample("p", response=text, label="1/3", index=index) for index, text in enumerate(responses)]

    async def score() -> list[float]:
        reward = UseReward(use="math", on_error="zero", timeout=2, concurrency=1)
        runner = RewardRunner.from_recipe([reward], Catalog.installed())
        try:
            return [outcome.value for outcome in await runner.score(samples)]
        finally:
            await runner.close()

    assert asyncio.run(score()) == [1, 0, 1]
