import math

import torch

from rlcore.algorithms.importance_sampling import truncated_weights


def test_ratios_are_clamped_and_carry_no_gradient():
    trained = torch.tensor([0.0, -5.0, 0.1], requires_grad=True)
    weights = truncated_weights(trained, torch.tensor([-3.0, 0.0, 0.0]), low=0.5, high=2.0)
    torch.testing.assert_close(weights, torch.tensor([2.0, 0.5, math.exp(0.1)]))
    assert not weights.requires_grad
