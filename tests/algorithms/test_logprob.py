import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed as dist

from rlcore.algorithms.logprob import score_tokens


def naive(hidden, weight, targets, temperature=1.0):
    log_probs = torch.log_softmax((hidden @ weight.t()).float() / temperature, dim=-1)
    return log_probs.gather(1, targets[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(-1)


def random_problem(tokens, hidden, vocabulary, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(tokens, hidden, generator=generator).to(dtype)
    weight = torch.randn(vocabulary, hidden, generator=generator).to(dtype)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return states.requires_grad_(), weight.requires_grad_(), targets


def gradients(log_probs, entropy, inputs):
    along = torch.linspace(-1, 1, len(log_probs))
    return torch.autograd.grad((log_probs * along).sum() + 0.3 * entropy.sum(), inputs)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 40),
    hidden=st.integers(1, 12),
    vocabulary=st.integers(2, 90),
    tile=st.integers(1, 400),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
)
def test_tiles_of_any_size_give_the_scores_and_gradients_of_whole_logits(
    tokens, hidden, vocabulary, tile, temperature
):
    states, weight, targets = random_problem(tokens, hidden, vocabulary)
    scores = score_tokens(
        states, weight, targets, temperature=temperature, entropy="gradient", tile_elements=tile
    )
    expected = naive(states, weight, targets, temperature)
    torch.testing.assert_close(scores.log_probs_t, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.entropy_t, expected[1], rtol=1e-5, atol=1e-5)
    found = gradients(scores.log_probs_t, scores.entropy_t, (states, weight))
    for ours, theirs in zip(found, gradients(*expected, (states, weight)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("tile", [1 << 20, 40])
def test_gradients_agree_with_finite_differences(tile):
    states, weight, targets = random_problem(5, 3, 23, dtype=torch.float64)

    def scored(states, weight):
        scores = score_tokens(states, weight, targets, entropy="gradient", tile_elements=tile)
        return (scores.log_probs_t + 0.5 * scores.entropy_t).sum()

    assert torch.autograd.gradcheck(scored, (states, weight))


def test_float32_scores_lie_within_a_millionth_of_float64():
    states, weight, targets = random_problem(64, 32, 1000)
    weight = (weight / 6).detach()
    scores = score_tokens(states, weight, targets, entropy="value", tile_elements=1000)
    exact = torch.log_softmax(states.double() @ weight.double().t(), -1)
    exact_target = exact.gather(1, targets[:, None])[:, 0]
    assert ((scores.log_probs_t - exact_target).abs() / exact_target.abs()).max() < 1e-6
    assert (scores.entropy_t + (exact.exp() * exact).sum(-1)).abs().max() < 1e-5


def test_bfloat16_gradients_lie_within_a_thousandth_of_what_rounding_alone_costs():
    states, weight, targets = random_problem(256, 64, 700, dtype=torch.bfloat16)
    weight = (weight / 8).detach().requires_grad_()
    wide = [x.detach().float().requires_grad_() for x in (states, weight)]
    scores = score_tokens(states, weight, targets, tile_elements=5000)
    found = torch.autograd.grad(scores.log_probs_t.mean(), (states, weight))
    exact = torch.autograd.grad(naive(*wide, targets)[0].mean(), wide)
    for ours, truth in zip(found, exact, strict=True):
        assert relative_error(ours, truth) < relative_error(truth.bfloat16(), truth) + 1e-3


def relative_error(found, truth):
    return (found.float() - truth).norm() / truth.norm()


def test_entropy_without_gradient_leaves_the_gradient_of_log_probs_alone():
    states, weight, targets = random_problem(6, 4, 11)
    scores = score_tokens(states, weight, targets, entropy="value")
    assert not scores.entropy_t.requires_grad
    found = torch.autograd.grad(scores.log_probs_t.sum(), states)[0]
    torch.testing.assert_close(found, torch.autograd.grad(naive(states, weight, targets)[0].sum(), states)[0])


def test_no_tokens_give_no_scores_and_zero_gradients():
    states, weight, targets = random_problem(0, 4, 11)
    log_probs = score_tokens(states, weight, targets, entropy="gradient").log_probs_t
    assert log_probs.shape == (0,)
    assert not torch.autograd.grad(log_probs.sum(), weight)[0].any()


def _score_a_slice(rank, rendezvous, tile, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    states, weight, targets = random_problem(30, 8, 64)
    first = rank * 32
    mine = weight.detach()[first : min(first + 32, 50)].clone().requires_grad_()
    scores = score_tokens(
        states, mine, targets % 50,
        first_id=first, entropy="gradient", group=dist.group.WORLD, tile_elements=tile,
    )  # fmt: skip
    states_grad, weight_grad = gradients(scores.log_probs_t, scores.entropy_t, (states, mine))
    torch.save((scores.log_probs_t, scores.entropy_t, states_grad, weight_grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("tile", [1 << 20, 50])
def test_a_vocabulary_split_over_two_ranks_gives_the_same_numbers(tmp_path, tile):
    mp.spawn(_score_a_slice, (str(tmp_path / "rendezvous"), tile, str(tmp_path)), nprocs=2)
    states, weight, targets = random_problem(30, 8, 64)
    expected = naive(states, weight[:50], targets % 50)
    expected_grads = gradients(*expected, (states, weight))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for rank in (first, second):
        torch.testing.assert_close(rank[0], expected[0])
        torch.testing.assert_close(rank[1], expected[1])
    torch.testing.assert_close(first[2] + second[2], expected_grads[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([first[3], second[3]]), expected_grads[1][:50], rtol=1e-4, atol=1e-5)
