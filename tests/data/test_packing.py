from itertools import chain
from math import ceil, log
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcore.data.packing import Step, schedule

LENGTHS = st.lists(st.integers(1, 60), max_size=120)
GRIDS = st.fixed_dictionaries(
    {
        "dp": st.integers(1, 6),
        "cp": st.integers(1, 2),
        "max_tokens_per_gpu": st.integers(10, 50),
        "global_batch_size": st.integers(1, 130),
        "multiple_of": st.integers(1, 3),
    }
)


def cost(length: int) -> float:
    """Attention overtakes the matrices at 50,000 tokens, about as in a dense model of 9B."""
    return length + length**2 / 50_000


def one_step(lengths: list[int], **grid: int) -> Step:
    (step,) = schedule(lengths, global_batch_size=len(lengths), cost=cost, **grid).steps
    return step


def micro_batches(step: Step) -> list[list[int]]:
    return list(chain.from_iterable(step.ranks))


def contents(step: Step, lengths: list[int]) -> list[list[list[int]]]:
    """The lengths in each micro-batch of each rank."""
    return [[[lengths[i] for i in members] for members in rank] for rank in step.ranks]


@given(LENGTHS, GRIDS)
def test_every_sample_is_trained_once_in_the_step_of_its_turn(lengths, grid):
    size = grid["global_batch_size"]
    steps = schedule(lengths, cost=cost, **grid).steps
    assert len(steps) == ceil(len(lengths) / size)
    for number, step in enumerate(steps):
        turn = range(len(lengths))[number * size : (number + 1) * size]
        assert sorted(chain.from_iterable(micro_batches(step))) == list(turn)


@given(LENGTHS, GRIDS)
def test_only_a_sample_longer_than_the_cap_passes_it_and_goes_alone(lengths, grid):
    for step in schedule(lengths, cost=cost, **grid).steps:
        for members in micro_batches(step):
            tokens = sum(lengths[i] for i in members)
            assert len(members) == 1 or tokens <= grid["max_tokens_per_gpu"] * grid["cp"]


@given(LENGTHS, GRIDS)
def test_ranks_have_equally_many_micro_batches_a_multiple_of_what_the_pipeline_needs(lengths, grid):
    for step in schedule(lengths, cost=cost, **grid).steps:
        assert len(step.ranks) == grid["dp"]
        (count,) = {len(rank) for rank in step.ranks}
        assert count > 0
        assert count % grid["multiple_of"] == 0


@given(LENGTHS, GRIDS)
def test_a_micro_batch_is_empty_only_for_want_of_samples(lengths, grid):
    for step in schedule(lengths, cost=cost, **grid).steps:
        filled = [members for members in micro_batches(step) if members]
        assert len(filled) == min(len(micro_batches(step)), len(list(chain.from_iterable(filled))))


@given(LENGTHS.filter(bool), st.integers(1, 6), st.integers(10, 60), st.integers(1, 3))
def test_ranks_need_no_more_micro_batches_together_than_one_rank_alone(lengths, dp, cap, multiple_of):
    alone = len(one_step(lengths, dp=1, max_tokens_per_gpu=cap).ranks[0])
    together = one_step(lengths, dp=dp, max_tokens_per_gpu=cap, multiple_of=multiple_of)
    assert len(together.ranks[0]) == multiple_of * ceil(alone / (dp * multiple_of))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=80))
def test_one_rank_needs_less_than_twice_the_micro_batches_that_its_tokens_fill(lengths):
    assert len(one_step(lengths, dp=1, max_tokens_per_gpu=20).ranks[0]) < 2 * sum(lengths) / 20 + 1


def test_micro_batches_are_filled_where_lengths_allow_it():
    step = one_step([6, 8, 2, 4], dp=1, max_tokens_per_gpu=10)
    assert step.ranks == [[[1, 2], [0, 3]]]
    assert step.token_fill == 1


@given(st.data(), LENGTHS.filter(bool), st.integers(1, 6), st.integers(10, 60))
def test_the_order_of_samples_in_a_step_changes_no_micro_batch(data, lengths, dp, cap):
    shuffled = data.draw(st.permutations(lengths))
    grid = {"dp": dp, "max_tokens_per_gpu": cap}
    assert contents(one_step(shuffled, **grid), shuffled) == contents(one_step(lengths, **grid), lengths)


@given(LENGTHS, GRIDS)
def test_figures_follow_from_the_micro_batches(lengths, grid):
    for step in schedule(lengths, cost=cost, **grid).steps:
        costs = [[sum(map(cost, members)) for members in rank] for rank in contents(step, lengths)]
        ideal = sum(map(sum, costs)) / grid["dp"]
        tokens = sum(lengths[i] for members in micro_batches(step) for i in members)
        cap = grid["max_tokens_per_gpu"] * grid["cp"]
        assert step.token_fill == pytest.approx(tokens / cap / len(micro_batches(step)))
        assert step.lockstep_over_ideal == pytest.approx(sum(map(max, zip(*costs, strict=True))) / ideal)
        assert step.makespan_over_ideal == pytest.approx(max(map(sum, costs)) / ideal)


def test_micro_batches_that_run_together_are_of_like_composition():
    lengths = [16] * 4 + [1] * 64
    step = one_step(lengths, dp=4, max_tokens_per_gpu=16)
    assert {tuple(map(tuple, rank)) for rank in contents(step, lengths)} == {((16,), (1,) * 16)}
    assert step.lockstep_over_ideal == 1


def test_the_dearest_round_comes_first_so_that_the_peak_of_memory_shows_at_once():
    lengths = [3, 4, 2, 9, 8, 9, 1, 8]
    first, *others = zip(*contents(one_step(lengths, dp=2, max_tokens_per_gpu=9), lengths), strict=True)
    assert first == ([9], [9])
    assert others


def test_ranks_beside_a_long_sample_take_more_so_that_later_rounds_take_less():
    lengths = [10] + [1] * 14
    step = one_step(lengths, dp=2, max_tokens_per_gpu=10, multiple_of=2)
    (long, _), (beside, _) = sorted(contents(step, lengths), reverse=True)
    assert long == [10]
    assert beside == [1] * 10


def test_context_parallel_ranks_share_the_tokens_of_a_micro_batch():
    assert one_step([7, 7, 7, 7], dp=1, cp=2, max_tokens_per_gpu=7).ranks == [[[0, 2], [1, 3]]]


DRAWS = {
    "lognormal": lambda rng, cap: rng.lognormvariate(log(cap / 8), 0.7),
    "bimodal": lambda rng, cap: rng.gauss(cap * rng.choice((0.1, 0.1, 0.1, 0.7)), cap / 30),
    "long-tailed": lambda rng, cap: cap / 16 * rng.paretovariate(1.5),
    "uniform": lambda rng, cap: rng.uniform(cap / 50, cap),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_ranks_hardly_wait_for_one_another(draw):
    rng = Random(0)
    for dp, cap in ((2, 4_608), (16, 16_384)):
        lengths = [int(min(cap, max(16, draw(rng, cap)))) for _ in range(2_048)]
        assert one_step(lengths, dp=dp, max_tokens_per_gpu=cap).lockstep_over_ideal < 1.01


def test_cost_is_asked_once_per_length():
    asked = []
    schedule(
        [5, 3, 5, 5, 3],
        dp=2,
        max_tokens_per_gpu=8,
        global_batch_size=2,
        cost=lambda length: asked.append(length) or 1.0,
    )
    assert sorted(asked) == [3, 5]
