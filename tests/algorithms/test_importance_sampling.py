import math

import torch

from rlcore.algorithms.importance_sampling import truncated_weights

TRAINED, ROLLOUT = [0.0, -5.0, 0.1, -0.7], [-3.0, 0.0, 0.0, -0.7]
LOW, HIGH = 0.5, 2.0


def weights(**options):
    return truncated_weights(torch.tensor(TRAINED, **options), torch.tensor(ROLLOUT), LOW, HIGH)


def test_weights_are_the_clamped_ratios_of_probabilities():
    formula = [min(max(math.exp(t - r), LOW), HIGH) for t, r in zip(TRAINED, ROLLOUT, strict=True)]
    torch.testing.assert_close(weights().weight_t, torch.tensor(formula))


def test_metrics_are_ratio_distance_from_one_and_what_was_clamped():
    ratios = [math.exp(t - r) for t, r in zip(TRAINED, ROLLOUT, strict=True)]
    metrics = weights().metrics_t
    torch.testing.assert_close(metrics["importance/ratio"], torch.tensor(ratios))
    torch.testing.assert_close(metrics["importance/distance"], torch.tensor([abs(r - 1) for r in ratios]))
    assert metrics["importance/clip_fraction"].tolist() == [1, 1, 0, 0]


def test_weights_carry_no_gradient():
    assert not weights(requires_grad=True).weight_t.requires_grad
