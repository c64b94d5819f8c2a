import pytest
import torch
from rlcore_glm52_dsa import sparse
from rlcore_glm52_dsa.indexer_loss import divergence

QUERIES, KEYS, HEADS, WIDTH, CHOSEN = 60, 80, 16, 12, 10


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    shapes = (QUERIES, HEADS, WIDTH), (KEYS, WIDTH), (QUERIES, HEADS)
    indexer = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    index = torch.stack([torch.randperm(KEYS, generator=generator)[:CHOSEN] for _ in range(QUERIES)])
    index[0, 1:] = -1
    index[7, 4:] = -1
    mass = torch.rand(QUERIES, CHOSEN, generator=generator).masked_fill(index < 0, 0.0) * 3
    share = torch.rand(QUERIES, generator=generator)
    return indexer, index, mass, share


def one_by_one(indexer, index, mass, share):
    """The definition, query by query."""
    query, key, weight = indexer
    total = 0.0
    for t in range(QUERIES):
        seen = index[t] >= 0
        score = weight[t] @ (query[t] @ key[index[t][seen]].T).relu()
        target = mass[t][seen] / mass[t].sum()
        total = total + share[t] * (target * (target.log() - score.log_softmax(-1))).sum()
    return total


@pytest.mark.parametrize("block", [2**20, 2**11], ids=["one block", "many blocks"])
def test_loss_and_gradients_are_those_of_the_divergence_over_chosen_keys(inputs, monkeypatch, block):
    monkeypatch.setattr(sparse, "_BLOCK", {"cpu": block})
    indexer, index, mass, share = inputs
    ours, theirs = divergence(*indexer, index.int(), mass, share), one_by_one(*inputs)
    torch.testing.assert_close(ours, theirs)
    gradients = (torch.autograd.grad(2 * loss, indexer) for loss in (ours, theirs))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_scores_that_spread_as_attention_does_cost_nothing_and_give_no_gradient(inputs):
    indexer, index, _, share = inputs
    query, key, weight = indexer
    score = torch.einsum("ti,tik->tk", weight, (query @ key[index.clamp(min=0)].mT).relu())
    mass = score.masked_fill(index < 0, -torch.inf).softmax(-1).detach()
    loss = divergence(*indexer, index.int(), mass, share)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    assert all(gradient.abs().max() < 1e-5 for gradient in torch.autograd.grad(loss, indexer))
