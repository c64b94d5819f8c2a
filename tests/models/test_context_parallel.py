"""All ranks of a group, one after the other in this process."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlcore.models.context_parallel import ContextSplit, pad

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=6)
GROUPS = st.builds(
    lambda layout, size, multiple: [ContextSplit(layout, size, rank, multiple) for rank in range(size)],
    st.sampled_from(["zigzag", "contiguous"]),
    st.integers(1, 5),
    st.integers(1, 6),
)


def rolled(x_s, lengths):
    return torch.cat([torch.cat([part[1:], torch.zeros_like(part[:1])]) for part in x_s.split(list(lengths))])


@given(LENGTHS, GROUPS)
def test_what_is_split_merges_to_the_whole(lengths, group):
    lengths = group[0].padded(lengths)
    whole_s = torch.arange(sum(lengths))
    parts = torch.cat([rank.split(whole_s, lengths) for rank in group])
    assert torch.equal(parts[group[0].merging(lengths)], whole_s)


@given(LENGTHS, GROUPS)
def test_every_rank_has_equally_many_tokens_and_a_multiple_of_what_is_asked(lengths, group):
    padded = group[0].padded(lengths)
    tokens = {len(rank.places(padded)) for rank in group}
    assert tokens == {sum(padded) // len(group)}
    assert tokens.pop() % group[0].multiple == 0


@given(LENGTHS, GROUPS)
def test_padding_is_shorter_than_what_it_makes_full(lengths, group):
    first = group[0]
    padded = first.padded(lengths)
    assert all(0 <= more - length < first.cuts for more, length in zip(padded, lengths, strict=False))
    assert sum(padded[len(lengths) :]) < first.cuts * first.multiple


@given(LENGTHS, GROUPS)
def test_positions_are_those_in_the_whole_sequence(lengths, group):
    lengths = group[0].padded(lengths)
    whole_s = torch.cat([torch.arange(length) for length in lengths])
    for rank in group:
        assert torch.equal(rank.positions(lengths), rank.split(whole_s, lengths))


@given(LENGTHS, GROUPS)
def test_rolling_parts_is_rolling_the_whole(lengths, group):
    lengths = group[0].padded(lengths)
    whole_s2 = torch.arange(1, 2 * sum(lengths) + 1).reshape(-1, 2)
    parts = [rank.split(whole_s2, lengths) for rank in group]
    heads = []
    for rank, part in zip(group, parts, strict=True):
        rank.roll(part, lengths, lambda own: heads.append(own) or own.repeat(len(group), 1))
    for rank, part in zip(group, parts, strict=True):
        ours = rank.roll(part, lengths, lambda own: torch.cat(heads))
        assert torch.equal(ours, rank.split(rolled(whole_s2, lengths), lengths))


@given(LENGTHS, GROUPS, st.data())
def test_each_place_is_local_to_one_rank(lengths, group, data):
    lengths = group[0].padded(lengths)
    places_t = torch.tensor(data.draw(st.lists(st.integers(0, sum(lengths) - 1), min_size=1)))
    whole_s = torch.arange(sum(lengths)) * 10
    found_t = torch.zeros_like(places_t)
    for rank in group:
        local_t, row_t = rank.local(places_t, lengths)
        found_t[slice(None) if local_t is None else local_t] += rank.split(whole_s, lengths)[row_t]
    assert torch.equal(found_t, whole_s[places_t])


def test_zigzag_pairs_an_early_piece_with_a_late_one():
    first, second = (ContextSplit("zigzag", 2, rank) for rank in range(2))
    assert first.places([8, 4]).tolist() == [0, 1, 6, 7, 8, 11]
    assert second.places([8, 4]).tolist() == [2, 3, 4, 5, 9, 10]


def test_contiguous_cuts_once_between_two_ranks():
    first, second = (ContextSplit("contiguous", 2, rank) for rank in range(2))
    assert first.places([8, 4]).tolist() == [0, 1, 2, 3, 8, 9]
    assert second.places([8, 4]).tolist() == [4, 5, 6, 7, 10, 11]


def test_one_rank_pads_nothing_unless_asked():
    assert ContextSplit().padded([5, 3]) == (5, 3)
    assert ContextSplit(multiple=6).padded([5, 3]) == (5, 3, 4)


def test_padding_stands_at_the_end_of_each_sequence():
    assert pad(torch.tensor([1, 2, 3, 4]), [3, 1], (4, 2, 2)).tolist() == [1, 2, 3, 0, 4, 0, 0, 0]


@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
def test_queries_see_their_sequence_up_to_themselves(layout):
    split = ContextSplit(layout, 2, 1)
    for piece in split.pieces([8, 4]):
        start = 0 if piece.places.start < 8 else 8
        assert (piece.seen.start, piece.seen.stop) == (start, piece.places.stop)
        assert torch.equal(split.places([8, 4])[piece.rows], torch.tensor(piece.places))
