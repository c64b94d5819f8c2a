import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcore.bridge.transforms import (
    Columns,
    FusedGated,
    Gated,
    PackedQKV,
    PaddedVocabulary,
    Replicated,
    Rows,
    Shard,
)

TP = st.sampled_from([1, 2, 4])


def numbered(*shape):
    """Every element its own value, so that no mix-up can hide."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


def parts(transform, sources, shape, tp):
    """What each rank reads, given the whole parameter's shape split over the axis that the transform splits."""
    local = list(shape)
    if not isinstance(transform, Replicated):
        local[1 if isinstance(transform, Columns) else 0] //= tp
    return [transform.read(sources, tuple(local), Shard(rank, tp)) for rank in range(tp)]


def assert_round_trip(transform, sources, shape, tp):
    shards = parts(transform, sources, shape, tp)
    written = transform.write(shards)
    assert all(torch.equal(a, b) for a, b in zip(written, sources, strict=True))
    assert transform.source_shapes(tuple(shards[0].shape), tp) == tuple(tuple(s.shape) for s in sources)


@given(tp=TP, rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_plain_splits_come_back_as_they_were(tp, rows, columns):
    assert_round_trip(Rows(), [numbered(rows * tp, 3)], (rows * tp, 3), tp)
    assert_round_trip(Columns(), [numbered(rows, columns * tp)], (rows, columns * tp), tp)
    assert_round_trip(Replicated(), [numbered(rows)], (rows,), tp)


@given(tp=TP, part=st.integers(1, 4), width=st.integers(1, 3))
def test_gate_and_up_come_back_as_they_were(tp, part, width):
    half = part * tp
    assert_round_trip(Gated(), [numbered(half, width), -numbered(half, width)], (2 * half, width), tp)
    assert_round_trip(FusedGated(), [numbered(2 * half, width)], (2 * half, width), tp)


@settings(max_examples=200)
@given(
    tp=TP,
    groups=st.integers(1, 4),
    per_group=st.integers(1, 3),
    head_dim=st.sampled_from([4, 8]),
    bias=st.booleans(),
)
def test_queries_keys_and_values_come_back_as_they_were(tp, groups, per_group, head_dim, bias):
    transform = PackedQKV(groups * per_group, groups, head_dim)
    rest = () if bias else (3,)
    sizes = [groups * per_group * head_dim, groups * head_dim, groups * head_dim]
    sources = [numbered(size, *rest) + 1000 * i for i, size in enumerate(sizes)]
    assert_round_trip(transform, sources, (sum(sizes), *rest), tp)


@given(tp=TP, vocab=st.integers(4, 21))
def test_padded_rows_are_zero_and_never_come_back(tp, vocab):
    padded = -(-vocab // tp) * tp
    transform = PaddedVocabulary(vocab)
    source = numbered(vocab, 2) + 1
    assert_round_trip(transform, [source], (padded, 2), tp)
    whole = torch.cat(parts(transform, [source], (padded, 2), tp))
    assert not whole[vocab:].any()


def test_each_group_holds_its_queries_then_its_key_then_its_value():
    q, k, v = numbered(4, 1), numbered(2, 1) + 10, numbered(2, 1) + 20
    packed = PackedQKV(heads=4, groups=2, head_dim=1).read([q, k, v], (8, 1), Shard())
    assert packed[:, 0].tolist() == [0, 1, 10, 20, 2, 3, 11, 21]


def test_more_ranks_than_groups_share_the_rows_equally():
    q, k, v = numbered(4, 1), numbered(2, 1) + 10, numbered(2, 1) + 20
    ranks = parts(PackedQKV(heads=2, groups=1, head_dim=2), [q, k, v], (8, 1), tp=4)
    assert [rank[:, 0].tolist() for rank in ranks] == [[0, 1], [2, 3], [10, 11], [20, 21]]


def test_each_rank_holds_its_part_of_gate_and_up():
    gate, up = numbered(4, 1), numbered(4, 1) + 10
    ranks = parts(Gated(), [gate, up], (8, 1), tp=2)
    assert [rank[:, 0].tolist() for rank in ranks] == [[0, 1, 10, 11], [2, 3, 12, 13]]


def test_one_rank_reads_no_more_than_its_rows():
    class Watched:
        asked: list[slice] = []  # noqa: RUF012

        def __getitem__(self, rows):
            self.asked.append(rows)
            return numbered(8, 1)[rows]

    FusedGated().read([Watched()], (4, 1), Shard(1, 2))
    assert Watched.asked == [slice(2, 4), slice(6, 8)]


@pytest.mark.parametrize("transform", [Rows(), FusedGated(), Columns(), Replicated()])
def test_without_tensor_parallelism_nothing_is_copied(transform):
    source = numbered(8, 4)
    part = transform.read([source], (8, 4), Shard())
    assert part.data_ptr() == source.data_ptr()
    assert transform.write([part])[0].data_ptr() == source.data_ptr()
