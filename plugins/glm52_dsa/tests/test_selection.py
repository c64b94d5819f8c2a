import pytest
import torch
from rlcore_glm52_dsa import selection
from rlcore_glm52_dsa.selection import fingerprint, select

LENGTHS = (5, 300, 33, 1, 70)
TOPK = 24


def spans(lengths):
    place_t = torch.arange(sum(lengths))
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1]
    return starts.repeat_interleave(torch.tensor(lengths)), place_t


def drawn(queries, keys, *, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = (queries, 16, 12), (keys, 12), (queries, 16)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def dense_scores(query_tid, key_Td, weight_ti, first_t, last_t):
    score_tT = torch.einsum("ti,tiT->tT", weight_ti.float(), (query_tid.float() @ key_Td.float().T).relu())
    place = torch.arange(len(key_Td))
    return score_tT.masked_fill((place < first_t[:, None]) | (place > last_t[:, None]), -torch.inf)


def sets(index_tk):
    return [set(row) - {-1} for row in index_tk.tolist()]


@pytest.fixture(params=[(2**20, 1024), (2**14, 100)], ids=["one tile", "many tiles"])
def tiles(request, monkeypatch):
    tile, fewest = request.param
    monkeypatch.setattr(selection, "_TILE", {"cpu": tile})
    monkeypatch.setattr(selection, "_FEWEST_KEYS", fewest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_query_gets_the_keys_of_its_sequence_with_the_best_scores(tiles, dtype):
    first_t, last_t = spans(LENGTHS)
    inputs = (*drawn(len(last_t), len(last_t), dtype=dtype), first_t, last_t)
    index_tk = select(*inputs, TOPK)
    best_tk, place_tk = dense_scores(*inputs).topk(TOPK)
    assert index_tk.dtype == torch.int32
    assert sets(index_tk) == sets(place_tk.masked_fill(best_tk == -torch.inf, -1))


def test_places_ascend_and_a_query_that_sees_fewer_keys_has_all_of_them_and_then_none(tiles):
    first_t, last_t = spans(LENGTHS)
    index_tk = select(*drawn(len(last_t), len(last_t)), first_t, last_t, TOPK)
    for row, first, last in zip(index_tk.tolist(), first_t.tolist(), last_t.tolist(), strict=True):
        seen = min(TOPK, last - first + 1)
        assert all(first <= place <= last for place in row[:seen])
        assert row[:seen] == sorted(row[:seen])
        assert row[seen:] == [-1] * (TOPK - seen)


def test_no_more_columns_are_made_than_the_longest_sequence_has_keys():
    first_t, last_t = spans((3, 7))
    index_tk = select(*drawn(10, 10), first_t, last_t, 2048)
    assert index_tk.shape == (10, 7)
    assert sets(index_tk) == [
        set(range(first, last + 1)) for first, last in zip(first_t.tolist(), last_t.tolist(), strict=True)
    ]


def test_queries_may_be_a_part_of_the_tokens(tiles):
    first_t, last_t = spans(LENGTHS)
    query_tid, key_Td, weight_ti = drawn(len(last_t), len(last_t))
    whole = sets(select(query_tid, key_Td, weight_ti, first_t, last_t, TOPK))
    rows = slice(100, 250)
    part = select(query_tid[rows], key_Td, weight_ti[rows], first_t[rows], last_t[rows], TOPK)
    assert sets(part) == whole[rows]


@pytest.mark.parametrize("length", [400, 1600])
def test_no_tensor_is_larger_than_a_tile_or_what_comes_in_and_out(length, monkeypatch):
    monkeypatch.setattr(selection, "_TILE", {"cpu": 2**16})
    monkeypatch.setattr(selection, "_FEWEST_KEYS", 256)
    first_t, last_t = spans((length,))
    inputs = drawn(length, length)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        select(*inputs, first_t, last_t, TOPK)
    assert largest <= max(2**16, inputs[0].numel())


def test_fingerprints_ignore_order_padding_and_where_a_sequence_is_packed():
    index_tk = torch.tensor([[3, 5, 9, -1], [9, -1, 3, 5], [13, 15, 19, -1]])
    one, other, moved = fingerprint(index_tk, torch.tensor([3, 3, 13]), 0).tolist()
    assert one == other == moved


def test_fingerprints_tell_sets_layers_and_exchanged_choices_apart():
    first = torch.zeros(4, dtype=torch.long)
    rows = torch.tensor([[0, 1], [0, 2], [1, 2], [0, -1]])
    layers = torch.stack([fingerprint(rows, first, ordinal) for ordinal in range(3)])
    assert len(set(layers.flatten().tolist())) == 12
    # Two layers that chose each other's keys.
    assert layers[0, 0] + layers[1, 1] != layers[0, 1] + layers[1, 0]
