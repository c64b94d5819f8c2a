import torch
from hypothesis import given
from hypothesis import strategies as st

from rlcore.algorithms.reduction import token_weights

MASKS = [torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0]), torch.tensor([0.0, 0.0])]


def test_sample_reduction_is_the_mean_of_sample_means():
    weights = token_weights(MASKS, "sample")
    torch.testing.assert_close(torch.cat(weights), torch.tensor([1 / 6, 1 / 6, 0, 1 / 3, 0, 0]))


def test_token_reduction_is_the_mean_over_all_tokens():
    weights = token_weights(MASKS, "token")
    torch.testing.assert_close(torch.cat(weights), torch.tensor([1 / 3, 1 / 3, 0, 1 / 3, 0, 0]))


def test_a_step_without_any_token_has_weight_zero():
    for reduction in ("sample", "token"):
        assert not torch.cat(token_weights([torch.zeros(3)], reduction)).any()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.randoms(), st.sampled_from(["sample", "token"]))
def test_the_loss_is_the_same_however_samples_are_split_into_micro_batches(lengths, random, reduction):
    masks = [torch.ones(length) for length in lengths]
    losses = [torch.arange(length) + float(length) for length in lengths]
    weights = token_weights(masks, reduction)
    whole = sum((w * loss).sum() for w, loss in zip(weights, losses, strict=True))
    order = random.sample(range(len(lengths)), len(lengths))
    cut = random.randint(0, len(lengths))
    parts = [sum((weights[i] * losses[i]).sum() for i in part) for part in (order[:cut], order[cut:])]
    torch.testing.assert_close(sum(map(torch.as_tensor, parts)), whole)
