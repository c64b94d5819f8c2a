import pytest
import torch
from rlcore_glm52_dsa import sparse
from rlcore_glm52_dsa.sparse import attend, attention_mass

HEADS, WIDTH, VALUES, SCALE = 3, 20, 12, 0.3


def drawn(queries=90, keys=120, chosen=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(queries, HEADS, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    key = torch.randn(keys, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    index = torch.stack([torch.randperm(keys, generator=generator)[:chosen] for _ in range(queries)]).int()
    # As many choices as queries at the start of a sequence have.
    for row in range(chosen):
        index[row, row + 1 :] = -1
    return query, key, index


def one_by_one(query, key, index):
    """Softmax over the list of chosen keys, query by query."""

    def row(query_hd, places):
        key_kd = key[places[places >= 0].long()]
        if not len(key_kd):
            return query_hd[:, :VALUES] * 0
        return (query_hd @ key_kd.T * SCALE).softmax(-1) @ key_kd[:, :VALUES]

    return torch.stack([row(*each) for each in zip(query, index, strict=True)])


@pytest.fixture(params=[2**20, 2**11], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(sparse, "_BLOCK", {"cpu": request.param})


@pytest.fixture(params=["distinct", "repeated", "without any"])
def inputs(request):
    query, key, index = drawn(dtype=torch.float32)
    if request.param == "repeated":
        index[40:, 8:] = index[40:, :8]
    if request.param == "without any":
        index[50] = -1
    return query, key, index


def test_values_and_gradients_are_those_of_softmax_over_the_chosen_keys(blocks, inputs):
    query, key, index = inputs
    out, expected = attend(query, key, index, SCALE, VALUES), one_by_one(query, key, index)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad(x, (query, key), weight) for x in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_query_without_keys_gets_zeros_and_gives_no_gradient():
    query, key, index = drawn(dtype=torch.float32)
    index[:] = -1
    out = attend(query, key, index, SCALE, VALUES)
    out.sum().backward()
    assert not out.any()
    assert not query.grad.any()
    assert not key.grad.any()


def test_bfloat16_comes_out_as_float32_rounded_once():
    query, key, index = (x.to(torch.bfloat16) if x.is_floating_point() else x for x in drawn())
    narrow = attend(query, key, index, SCALE, VALUES)
    wide = attend(query.float(), key.float(), index, SCALE, VALUES)
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow, wide.to(torch.bfloat16))


def test_mass_is_what_all_heads_together_give_to_each_chosen_key(blocks, inputs):
    query, key, index = inputs
    mass = attention_mass(query, key, index, SCALE)
    score = torch.einsum("thd,tkd->thk", query, key[index.clamp(min=0).long()]) * SCALE
    expected = score.masked_fill((index < 0)[:, None], -torch.inf).softmax(-1).nan_to_num().sum(1)
    torch.testing.assert_close(mass, expected, rtol=1e-5, atol=1e-6)


def test_what_is_kept_for_the_backward_pass_grows_with_queries_not_with_pairs():
    query, key, index = drawn(dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        out = attend(query, key, index, SCALE, VALUES)
    given = query.numel() + key.numel() + index.numel() + out.numel()
    assert sum(kept) == given + out[..., 0].numel()
