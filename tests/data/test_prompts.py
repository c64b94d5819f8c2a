import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcore.data.chat import Prompt
from rlcore.data.datasets import Row
from rlcore.data.prompts import PromptSource
from rlcore.data.sample import Sample, Status
from rlcore.errors import RlcoreError


def make_source(size=5, *, seed=0, shuffle=True, samples_per_prompt=2):
    prompts = [Prompt(Row(prompt=str(n), place=f"rows:{n}", metadata={"n": n}), [n]) for n in range(size)]
    return PromptSource(prompts, seed=seed, shuffle=shuffle, samples_per_prompt=samples_per_prompt)


def prompts_of(groups):
    return [group[0].prompt for group in groups]


def test_a_group_holds_the_samples_of_one_prompt():
    [group] = make_source(samples_per_prompt=3, shuffle=False).next(1)
    assert [(sample.group, sample.index, sample.prompt_tokens) for sample in group] == [
        (0, i, [0]) for i in range(3)
    ]


def test_group_numbers_run_on_over_epochs():
    source = make_source(3)
    assert [group[0].group for group in source.next(4) + source.next(3)] == list(range(7))
    assert source.state()["served"] == 7


def test_each_epoch_serves_every_prompt_in_an_order_of_its_own():
    source = make_source(20)
    first, second = prompts_of(source.next(20)), prompts_of(source.next(20))
    assert sorted(first) == sorted(second) == sorted(map(str, range(20)))
    assert first != second
    assert prompts_of(make_source(20, seed=1).next(20)) != first


def test_without_shuffling_the_file_order_repeats():
    assert prompts_of(make_source(3, shuffle=False).next(7)) == list("0120120")


def test_the_global_random_state_neither_matters_nor_moves():
    random.seed(1)
    before = random.getstate()
    first = prompts_of(make_source(20).next(20))
    assert random.getstate() == before
    random.seed(2)
    assert prompts_of(make_source(20).next(20)) == first


def test_groups_put_back_come_first_with_what_they_have():
    source = make_source(shuffle=False)
    first, second = source.next(2)
    first[0].tokens = [7, 8]
    source.put_back([first, second])
    assert source.next(3)[:2] == [first, second]
    assert source.state()["served"] == 3


def test_samples_share_nothing_that_can_change():
    [group] = make_source().next(1)
    group[0].metadata["n"] = "changed"
    group[0].prompt_tokens.append(9)
    assert group[1].metadata != group[0].metadata
    assert group[1].prompt_tokens != group[0].prompt_tokens


@given(steps=st.lists(st.tuples(st.integers(1, 7), st.integers(0, 3)), max_size=6), size=st.integers(1, 6))
def test_a_restored_source_goes_on_as_if_never_stopped(steps, size):
    source = make_source(size)
    for wanted, unfinished in steps:
        groups = source.next(wanted)
        for group in groups[:unfinished]:
            group[0].tokens, group[0].log_probs, group[0].status = [3], [-0.1], Status.ABORTED
        source.put_back(groups[:unfinished])
    resumed = make_source(size)
    resumed.restore(json.loads(json.dumps(source.state())))
    assert resumed.next(9) == source.next(9)
    assert resumed.state() == source.state()


@pytest.mark.parametrize(("other", "word"), [({"size": 4}, "dataset"), ({"seed": 1}, "seed")])
def test_a_state_of_another_run_is_refused(other, word):
    with pytest.raises(RlcoreError, match=f"the {word} has changed"):
        make_source(**other).restore(make_source().state())


def test_a_sample_survives_its_journey_through_json():
    sample = Sample(prompt="x", tokens=[1], log_probs=[-0.5], status=Status.TRUNCATED, reward=1.0)
    assert Sample.from_dict(json.loads(json.dumps(sample.to_dict()))) == sample
