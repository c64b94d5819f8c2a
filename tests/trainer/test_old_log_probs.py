"""Which probabilities ratio and importance weights are of, where several versions of weights made a batch."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlcore.algorithms.losses import ClipOptions, clip
from rlcore.config.schema import Algorithm, Optimizer
from rlcore.errors import RlcoreError
from rlcore.trainer.objectives import PolicyObjective

LENGTHS = [(5, 9), (3, 17), (8, 4), (2, 30)]
TRUNCATED = Algorithm(importance_sampling={"enabled": True, "low": 0.5, "high": 2.0})


def plain_gradient_norm(checkpoint, samples):
    """Loss and gradient norm of max(-r A, -clip(r) A) · clamp(π_old / π_rollout), sample by sample."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    losses = []
    for sample in samples:
        logits = model(torch.tensor(sample.tokens)[None]).logits[0, sample.prompt_length - 1 : -1]
        targets = torch.tensor(sample.tokens[sample.prompt_length :])
        new = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        old = new.detach() if sample.old_log_probs is None else torch.tensor(sample.old_log_probs)
        advantage, mask, drawn = map(
            torch.tensor, (sample.advantages, sample.loss_mask, sample.rollout_log_probs)
        )
        ratio, weight = (new - old).exp(), (old - drawn).exp().clamp(0.5, 2.0)
        surrogate = torch.maximum(-ratio * advantage, -ratio.clamp(0.8, 1.2) * advantage)
        losses.append((surrogate * weight * mask).sum() / mask.sum())
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()


def partly_fresh(samples):
    """Weights of the rollout's start made all of one sample, nothing of another, and the last of others."""
    shares = (0.0, 1.0, 0.5, 0.3)
    return [
        dataclasses.replace(
            sample, fresh=[place >= share * sample.response_length for place in range(sample.response_length)]
        )
        for sample, share in zip(samples, shares, strict=True)
    ]


@pytest.mark.parametrize("cap", [1000, 40, 1])
@pytest.mark.parametrize("recomputed", [True, False])
def test_the_ratio_is_of_the_trainer_alone_and_weights_compare_it_with_the_engine(
    checkpoint, make_trainer, make_samples, recomputed, cap
):
    samples = partly_fresh(make_samples(LENGTHS, **({} if recomputed else {"old_log_probs": None})))
    drawn = [sample.old_log_probs for sample in make_samples(LENGTHS, seed=1)]
    samples = [dataclasses.replace(s, rollout_log_probs=d) for s, d in zip(samples, drawn, strict=True)]
    trainer = make_trainer(max_tokens_per_gpu=cap)
    trainer.prepare_optimizer(Optimizer(lr=1e-3, warmup_steps=0), total_steps=3)
    metrics = trainer.train_step(samples, PolicyObjective(clip.policy_loss(ClipOptions()), TRUNCATED))
    loss, norm = plain_gradient_norm(checkpoint, samples)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert (metrics["ratio"] == pytest.approx(1.0)) is not recomputed


@pytest.mark.parametrize("field", ["old_log_probs", "rollout_log_probs", "ref_log_probs", "advantages"])
def test_what_some_samples_of_a_step_have_all_must_have(make_trainer, make_samples, field):
    first, *others = make_samples(LENGTHS, rollout_log_probs=None)
    given = dataclasses.replace(first, **{field: [0.0] * first.response_length})
    samples = [given, *(dataclasses.replace(other, **{field: None}) for other in others)]
    trainer = make_trainer()
    trainer.prepare_optimizer(Optimizer(), total_steps=3)
    with pytest.raises(RlcoreError, match=f"sample 1: has no {field}, which sample 0 has"):
        trainer.train_step(samples, PolicyObjective(clip.policy_loss(ClipOptions()), Algorithm()))
