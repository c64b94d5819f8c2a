import torch

from rlcore.algorithms.advantages import subtract_kl, whiten


def test_whitened_advantages_have_mean_zero_and_variance_one_over_the_mask():
    advantages = torch.tensor([1.0, 2.0, 3.0, 100.0])
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(whiten(advantages, mask)[:3], torch.tensor([-1.0, 0.0, 1.0]))


def test_one_token_alone_is_whitened_to_zero():
    assert whiten(torch.tensor([5.0, 1.0]), torch.tensor([1.0, 0.0]))[0] == 0


def test_equal_advantages_are_whitened_to_zero():
    assert not whiten(torch.full((1000,), 100.1), torch.ones(1000)).any()


def test_kl_is_taken_from_each_token():
    found = subtract_kl(torch.ones(2), torch.tensor([0.5, -0.5]), 0.1)
    torch.testing.assert_close(found, torch.tensor([0.95, 1.05]))
