"""`exact`: equality of texts, and of what a pattern finds."""

import pytest
from rlcore_rewards.exact import ExactOptions, exact

from rlcore.errors import RlcoreError
from rlcore.plugin import RewardResult, Sample
from rlcore.registry import Catalog


def judged(response: str, label: str, **options: object) -> RewardResult:
    return exact(sample=Sample("p", response=response, label=label), options=ExactOptions(**options))


def test_white_space_around_does_not_count_unless_asked_for():
    assert judged(" yes\n", "yes").value == 1
    assert judged(" yes\n", "yes", strip=False).value == 0


def test_case_counts_unless_told_otherwise():
    assert judged("Yes", "yes").value == 0
    assert judged("Yes", "yes", ignore_case=True).value == 1


@pytest.mark.parametrize("pattern", [r"<a>(.*?)</a>", r"(?<=<a>)[^<]*(?=</a>)"])
def test_a_pattern_chooses_its_last_match(pattern):
    assert judged("<a>no</a><a>yes</a>.", "yes", pattern=pattern) == RewardResult(1, {"format": 1})
    assert judged("yes", "yes", pattern=pattern) == RewardResult(0, {"format": 0})


def test_a_broken_pattern_is_found_before_the_start():
    with pytest.raises(RlcoreError, match=r"options\.pattern"):
        Catalog.installed().load("reward", "exact").parse_options({"pattern": "("}, "options")
