"""`dapo`: the last `Answer:` of the response's end, in Minerva's normal form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rlcore_rewards.dapo import dapo, normalized, reference

from rlcore.plugin import RewardResult, Sample


def judged(response: str, label: str) -> RewardResult:
    return dapo(sample=Sample("p", response=response, label=label))


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("34", "34"),
        ("x = 34", "34"),
        ("$34$", "34"),
        ("the result is $34$.", "34"),
        ("\\boxed{34}", "34"),
        ("$\\boxed{34}$", "34"),
        ("1,234", "1234"),
        ("1{,}234", "1234"),
        ("34 square feet", "34"),
        ("34\\text{ cents}", "34"),
        ("\\text{34}", "34"),
        ("90^\\circ", "90"),
        ("\\frac12", "\\frac{1}{2}"),
        ("\\sqrt3", "\\sqrt{3}"),
        ("34<|im_end|>", "34"),
    ],
)
def test_the_normal_form_drops_what_means_nothing(answer, form):
    assert normalized(answer) == form


@pytest.mark.parametrize(
    ("label", "form"),
    [("34", "34"), ("034", "34"), ("34.0", "34"), ("2.5", "2.5"), ("\\frac12", "\\frac{1}{2}")],
)
def test_only_integer_labels_are_read_as_numbers(label, form):
    assert reference(label) == form


@pytest.mark.parametrize(
    ("response", "label", "value"),
    [
        ("Answer: 34", "34", 1),
        ("answer :34", "34", 1),
        ("Answer: 3\nwait\nAnswer: 34", "34", 1),
        ("Answer: 34\nAnswer: 3", "34", -1),
        ("Answer: 34.0", "34", -1),
        ("34", "34", -1),
        ("Answer: 34" + " " * 300, "34", -1),
        ("Answer: 2.5", "2.5", 1),
        ("Answer: blue", "blue", 1),
    ],
)
def test_the_last_answer_of_the_end_decides(response, label, value):
    assert judged(response, label).value == value


def test_accuracy_and_format_are_reported_beside_the_value():
    assert judged("Answer: 3", "34") == RewardResult(-1, {"acc": 0, "format": 1})
    assert judged("three", "34").parts == {"acc": 0, "format": 0}


@given(st.text(), st.text())
def test_no_text_breaks_it(response, label):
    assert judged(f"Answer: {response}", label).value in (-1, 1)
