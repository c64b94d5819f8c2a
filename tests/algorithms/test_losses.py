import pytest
import torch
from pydantic import ValidationError

from rlcore.algorithms.losses import CispoOptions, ClipOptions, GspoOptions, cispo, clip, gspo
from rlcore.plugin import LossBatch


def batch(ratios, advantages, mask=None, sample=None):
    ratios = torch.tensor(ratios)
    count = len(ratios)
    return LossBatch(
        log_probs_t=(ratios.log() - 1).requires_grad_(),
        old_log_probs_t=torch.full((count,), -1.0),
        advantages_t=torch.tensor(advantages),
        loss_mask_t=torch.tensor(mask or [1.0] * count),
        sample_t=torch.tensor(sample or [0] * count),
    )


def test_clip_takes_the_worse_of_the_free_and_the_clipped_ratio():
    terms = clip(batch=batch([1.1, 1.5, 1.5, 0.5, 0.5], [1.0, 1.0, -1.0, 1.0, -1.0]), options=ClipOptions())
    torch.testing.assert_close(terms.loss_t, torch.tensor([-1.1, -1.2, 1.5, -0.5, 0.8]))
    assert terms.metrics_t["clip_fraction"].tolist() == [0, 1, 0, 0, 1]


def test_clip_may_be_wider_above():
    terms = clip(batch=batch([1.5], [1.0]), options=ClipOptions(eps_clip_high=0.28))
    torch.testing.assert_close(terms.loss_t, torch.tensor([-1.28]))


def test_dual_clip_bounds_the_loss_of_negative_advantages_only():
    options = ClipOptions(eps_clip_c=3.0)
    terms = clip(batch=batch([9.0, 9.0], [-1.0, 1.0]), options=options)
    torch.testing.assert_close(terms.loss_t, torch.tensor([3.0, -1.2]))
    with pytest.raises(ValidationError):
        ClipOptions(eps_clip_c=0.5)


def test_clipped_tokens_have_no_gradient():
    problem = batch([1.1, 1.5], [1.0, 1.0])
    clip(batch=problem, options=ClipOptions()).loss_t.sum().backward()
    torch.testing.assert_close(problem.log_probs_t.grad, torch.tensor([-1.1, 0.0]))


def test_gspo_uses_one_ratio_for_the_whole_sequence():
    problem = batch([1.2, 1.0, 0.9, 2.0], [1.0] * 4, mask=[1.0, 1.0, 1.0, 0.0], sample=[0, 0, 1, 1])
    terms = gspo(batch=problem, options=GspoOptions(eps_clip=0.5, eps_clip_high=0.5))
    torch.testing.assert_close(-terms.loss_t, torch.tensor([1.2**0.5, 1.2**0.5, 0.9, 0.9]))


def test_gspo_clips_whole_sequences():
    problem = batch([1.2, 1.0, 0.9], [1.0] * 3, sample=[0, 0, 1])
    terms = gspo(batch=problem, options=GspoOptions())
    assert terms.metrics_t["clip_fraction"].tolist() == [1, 1, 0]


def test_cispo_clips_the_weight_and_keeps_the_gradient():
    problem = batch([9.0, 0.1], [1.0, 1.0])
    terms = cispo(batch=problem, options=CispoOptions())
    terms.loss_t.sum().backward()
    torch.testing.assert_close(problem.log_probs_t.grad, torch.tensor([-5.0, -0.1]))
    assert terms.metrics_t["clip_fraction"].tolist() == [1, 0]


def test_on_policy_all_losses_have_the_policy_gradient():
    for loss, options in ((clip, ClipOptions()), (cispo, CispoOptions())):
        problem = batch([1.0, 1.0], [0.7, -0.3])
        loss(batch=problem, options=options).loss_t.sum().backward()
        torch.testing.assert_close(problem.log_probs_t.grad, torch.tensor([-0.7, 0.3]))
