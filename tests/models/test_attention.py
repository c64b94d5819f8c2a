import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcore.models.attention import PackedAttention, PackedSequences
from rlcore.models.context_parallel import ContextSplit
from rlcore.models.shared_rows import SharedRows


def attention(query, key, value, lengths, cp=None, rows=None):
    layer = object.__new__(PackedAttention)
    torch.nn.Module.__init__(layer)
    layer.softmax_scale = None
    layer.cp_group = None
    return layer(query, key, value, packed_seq_params=PackedSequences.of(lengths, cp=cp, rows=rows))


def plain_attention(query_thd, key_tgd, value_tgd, lengths):
    """The formula, one sequence and one head at a time."""
    per_group = query_thd.shape[1] // key_tgd.shape[1]
    out = []
    for q, k, v in zip(*(x.split(lengths) for x in (query_thd, key_tgd, value_tgd)), strict=True):
        future = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
        heads = []
        for head in range(q.shape[1]):
            scores = q[:, head] @ k[:, head // per_group].T * q.shape[-1] ** -0.5
            heads.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v[:, head // per_group])
        out.append(torch.cat(heads, -1))
    return torch.cat(out)


def random_qkv(tokens, heads, groups, width, value_width):
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads, width), (groups, width), (groups, value_width))
    return [torch.randn(tokens, *shape, generator=generator, requires_grad=True) for shape in shapes]


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=5),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    value_width=st.sampled_from([4, 8]),
)
def test_output_and_gradients_are_those_of_the_formula(lengths, groups, per_group, value_width):
    qkv = random_qkv(sum(lengths), groups * per_group, groups, 8, value_width)
    ours, plain = attention(*qkv, lengths), plain_attention(*qkv, lengths)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), qkv),
        torch.autograd.grad((plain * weights).sum(), qkv),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lengths", [[6, 6, 6], [40, 6, 90]])
def test_sequences_that_share_rows_attend_as_if_each_had_its_own(lengths):
    rows = SharedRows.of([[1, 2, 3, 4, 5]] * 3, lengths)
    shared = random_qkv(len(rows.first_u), 4, 2, 8, 4)
    out_te = attention(*shared, lengths, rows=rows)
    own_te = attention(*map(rows.spread, shared), lengths)
    torch.testing.assert_close(out_te, rows.once(own_te), rtol=0, atol=0)
    for ours, whole in zip(
        torch.autograd.grad(rows.spread(out_te).sum(), shared),
        torch.autograd.grad(own_te.sum(), shared),
        strict=True,
    ):
        torch.testing.assert_close(ours, whole)


def test_sequences_of_like_length_share_a_call():
    padding = PackedSequences.of([100, 3, 90, 20, 110, 31]).padding
    assert padding.shapes == ((3, 31), (3, 110))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=30))
def test_padding_never_costs_more_than_a_quarter_beyond_short_sequences(lengths):
    padding = PackedSequences.of(lengths).padding
    assert padding.slots <= sum(max(32, 1.25 * length) for length in lengths)
    slots = range(sum(lengths)) if padding.slot_t is None else padding.slot_t.tolist()
    assert len(set(slots)) == sum(lengths)


def test_sequences_of_equal_length_are_not_copied():
    padding = PackedSequences.of([48, 48, 48]).padding
    assert (padding.shapes, padding.slot_t) == (((3, 48),), None)


def test_positions_start_anew_in_each_sequence():
    sequences = PackedSequences.of([3, 1, 2])
    assert sequences.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert sequences.cu_seqlens_q.tolist() == [0, 3, 4, 6]
    assert sequences.max_seqlen_q == 3


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    layout=st.sampled_from(["zigzag", "contiguous"]),
    ranks=st.integers(2, 3),
    value_width=st.sampled_from([4, 8]),
)
def test_ranks_that_share_sequences_attend_as_one_does(lengths, layout, ranks, value_width):
    """Each rank in turn, with the gather done beforehand; gradients add up over ranks."""
    group = [ContextSplit(layout, ranks, rank) for rank in range(ranks)]
    padded = group[0].padded(lengths)
    qkv = random_qkv(sum(padded), 4, 2, 8, value_width)
    keys_and_values = torch.cat(qkv[1:], -1)
    gathered = torch.cat([rank.split(keys_and_values, padded) for rank in group])
    parts = []
    for rank in group:
        own = [rank.split(x, padded) for x in qkv]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("rlcore.models.attention.gather_rows", lambda own, group: gathered)
            parts.append(attention(*own, lengths, rank))
    ours = torch.cat(parts)[group[0].merging(padded)]
    plain = plain_attention(*qkv, padded)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), qkv),
        torch.autograd.grad((plain * weights).sum(), qkv),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_shared_sequences_are_described_as_a_whole_and_padded():
    sequences = PackedSequences.of([5, 2], cp=ContextSplit("zigzag", 2, 1))
    assert sequences.lengths == (8, 4)
    assert sequences.cu_seqlens_q_padded.tolist() == sequences.cu_seqlens_q.tolist() == [0, 8, 12]
    assert sequences.max_seqlen_q == 8
    assert sequences.position_ids.tolist() == [[2, 3, 4, 5, 1, 2]]
