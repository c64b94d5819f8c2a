import asyncio

import pytest
import torch
from rlcore_glm47_flash.bridge import flash_bridge
from rlcore_glm47_flash.spec import flash_spec

from rlcore.config.schema import Model, Optimizer
from rlcore.data.train_sample import TrainSample
from rlcore.models.hf_config import read_hf_config
from rlcore.rollout.engine import Request, SamplingParams
from rlcore.rollout.local import LocalEngine
from rlcore.testing.routers import choice_margins
from rlcore.trainer.objectives import SftObjective
from rlcore.trainer.trainer import Trainer

PROMPTS = 24


def prompts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 499, (4 + i,), generator=generator).tolist() for i in range(PROMPTS)]


def generate(engine):
    """Give each prompt's response, as samples that know the engine's log-probs."""
    params = SamplingParams(max_new_tokens=20)

    async def answer(index, tokens):
        (delta,) = [d async for d in engine.generate(Request(f"{index}", tokens, params, key=(index,)))]
        return TrainSample(
            name=f"prompt {index}",
            tokens=[*tokens, *delta.tokens],
            prompt_length=len(tokens),
            loss_mask=[1.0] * len(delta.tokens),
            rollout_log_probs=delta.log_probs,
        )

    async def answer_all():
        return await asyncio.gather(*(answer(i, tokens) for i, tokens in enumerate(prompts())))

    return asyncio.run(answer_all())


async def send(trainer, engine):
    async with engine.weight_update(1) as update:
        await update.send(dict(trainer.exporter))


def largest_gap(trainer, samples):
    with choice_margins() as margins:
        found = trainer.log_probs(samples)
    assert min(margins) > 1e-6
    return max(
        (found[i] - torch.tensor(sample.rollout_log_probs)).abs().max().item()
        for i, sample in enumerate(samples)
    )


@pytest.fixture
def folder(make_checkpoint):
    return make_checkpoint(num_nextn_predict_layers=1)


@pytest.fixture
def trainer(megatron, folder):
    spec = flash_spec(read_hf_config(folder))
    return Trainer(spec, flash_bridge(spec), folder, model=Model(checkpoint=str(folder), dtype="float32"))


def test_engine_and_trainer_agree_before_and_after_training(folder, trainer):
    engine = LocalEngine(folder, mend=flash_spec(read_hf_config(folder)).mend_transformers)
    samples = generate(engine)
    assert largest_gap(trainer, samples) <= 1e-5

    trainer.prepare_optimizer(Optimizer(lr=1e-3), total_steps=3)
    for _ in range(3):
        trainer.train_step(samples, SftObjective())
    asyncio.run(send(trainer, engine))
    assert largest_gap(trainer, generate(engine)) <= 1e-5


def test_without_the_mending_they_would_not(folder, trainer):
    assert largest_gap(trainer, generate(LocalEngine(folder))) > 1e-5
