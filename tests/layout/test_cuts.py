"""The best balanced cuts into chunks of any sizes."""

from itertools import accumulate, combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcore.config.schema import Parallel
from rlcore.layout.cuts import best_cuts, free_form
from rlcore.layout.stage_rules import stage_problems
from rlcore.layout.stages import split_layers

layers = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=11)


def by_trying(costs, starts, chunks, last):
    """All cuts, best first: the dearest chunk decides, then the second dearest, and so on."""
    until = list(accumulate(costs, initial=0))
    allowed = [layer for layer in range(1, len(costs)) if starts[layer]]
    found = []
    for firsts in combinations(allowed, chunks - 1):
        ends = list(pairwise((0, *firsts, len(costs))))
        chunk_costs = [until[end] - until[start] for start, end in ends]
        chunk_costs[-1] += last
        found.append((sorted(chunk_costs, reverse=True), tuple(end - start for start, end in ends)))
    return tuple(cut for _, cut in sorted(found))


@given(layers=layers, chunks=st.integers(1, 5), last=st.integers(0, 9), limit=st.integers(1, 12))
def test_the_best_cuts_are_those_that_trying_finds(layers, chunks, last, limit):
    costs, starts = zip(*layers, strict=True)
    found = best_cuts(costs, starts, chunks, last=last, limit=limit)
    assert found == by_trying(costs, starts, chunks, last)[:limit]


@pytest.mark.parametrize(("chunks", "count"), [(2, 20), (3, 190), (4, 1140)])
def test_every_choice_of_starts_of_the_published_model_is_a_cut(published, chunks, count):
    assert len(best_cuts((1,) * 78, published, chunks, limit=2000)) == count


def test_the_best_of_77520_cuts_of_the_published_model(published):
    assert best_cuts((2,) * 78, published, 8, last=11) == ((10, 8, 8, 12, 12, 12, 12, 4),)


def test_what_follows_the_last_layer_counts():
    assert best_cuts((1,) * 8, (True,) * 8, 2, last=2) == ((5, 3),)


def test_the_dearest_chunk_decides_and_not_the_number_of_layers():
    assert best_cuts((6, 1, 1, 1, 1, 1), (True,) * 6, 2) == ((1, 5),)


def test_more_chunks_than_starts_leave_no_cut():
    assert best_cuts((1, 1, 1), (True, False, True), 3) == ()


@given(cut=st.lists(st.integers(1, 12), min_size=2, max_size=6), mtp_layers=st.integers(0, 2))
def test_a_cut_is_written_as_a_pipeline_layout_that_says_it(cut, mtp_layers):
    parallel = Parallel(pp=len(cut), pipeline_layout=free_form(cut, mtp_layers))
    assert stage_problems(parallel, [True] * sum(cut), mtp_layers) == []
    assert [len(chunk) for (chunk,) in split_layers(parallel, sum(cut))] == cut


def test_the_written_form_is_short():
    assert free_form((10, 1, 8), 1) == "Et*10|t|t*8mL"
