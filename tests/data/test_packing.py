from hypothesis import given
from hypothesis import strategies as st

from rlcore.data.packing import pack


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 60))
def test_every_sample_is_packed_once_and_only_a_long_one_passes_the_cap(lengths, cap):
    bins = pack(lengths, cap)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    for members in bins:
        assert len(members) == 1 or sum(lengths[i] for i in members) <= cap


def test_a_sample_longer_than_the_cap_goes_alone():
    assert pack([3, 100, 4], 10) == [[1], [2, 0]]


def test_the_fullest_bin_with_room_is_taken():
    assert pack([6, 8, 2, 4], 10) == [[1, 2], [0, 3]]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=80))
def test_at_most_every_second_bin_is_half_empty(lengths):
    half_empty = [members for members in pack(lengths, 20) if sum(lengths[i] for i in members) <= 10]
    assert len(half_empty) <= 1
