import pytest
import torch

from rlcore.algorithms.kl import kl_divergence

POLICY = torch.tensor([-1.0, -2.0, -0.5])
REFERENCE = torch.tensor([-1.5, -1.0, -0.5])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [0.5, -1.0, 0.0]),
        ("k2", [0.125, 0.5, 0.0]),
        ("k3", [0.1065307, 0.7182818, 0.0]),
        ("low_var_kl", [0.1065307, 0.7182818, 0.0]),
    ],
)
def test_each_estimator_follows_its_formula(estimator, expected):
    torch.testing.assert_close(kl_divergence(POLICY, REFERENCE, estimator), torch.tensor(expected))


def test_only_low_var_kl_is_clamped():
    policy, reference = torch.tensor([-9.0]), torch.tensor([-1.0])
    assert kl_divergence(policy, reference, "low_var_kl").item() == 10
    assert kl_divergence(policy, reference, "k3").item() > 1000


def test_a_token_far_beyond_the_bound_spoils_no_gradient():
    policy = torch.tensor([-100.0, -2.0], requires_grad=True)
    kl = kl_divergence(policy, torch.tensor([-1.0, -1.0]), "low_var_kl")
    kl.sum().backward()
    assert kl[0] == 10
    torch.testing.assert_close(policy.grad, torch.tensor([0.0, 1 - torch.e]))


def test_the_importance_ratio_multiplies_before_the_clamp():
    ratio = torch.tensor([2.0, 2.0, 2.0])
    doubled = kl_divergence(POLICY, REFERENCE, "k3", ratio)
    torch.testing.assert_close(doubled, 2 * kl_divergence(POLICY, REFERENCE, "k3"))
    huge = kl_divergence(POLICY, REFERENCE, "low_var_kl", 1000 * ratio)
    assert huge.max() == 10


@pytest.mark.parametrize(("estimator", "tolerance"), [("k1", 0.02), ("k3", 0.02)])
def test_estimates_average_to_the_divergence(estimator, tolerance):
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(8, generator=generator).log_softmax(0) for _ in range(2))
    draws = torch.multinomial(policy.exp(), 200_000, replacement=True, generator=generator)
    exact = (policy.exp() * (policy - reference)).sum()
    found = kl_divergence(policy[draws], reference[draws], estimator).mean()
    assert abs(found - exact) < tolerance
