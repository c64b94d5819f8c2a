"""How far engine and trainer are apart: the log-probs that both give to the tokens that the engine samples."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rlcore.config.schema import Optimizer
from rlcore.data.train_sample import TrainSample
from rlcore.rollout.engine import Engine, Request, SamplingParams

if TYPE_CHECKING:
    from rlcore.trainer.trainer import Trainer


def sample_responses(
    engine: Engine, *, vocab_size: int, count: int = 24, length: int = 20
) -> list[TrainSample]:
    """Have the engine answer random prompts of 4, 5, 6, … tokens; samples know its log-probs and selections."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(vocab_size, (4 + i,), generator=generator).tolist() for i in range(count)]

    async def respond(index: int) -> TrainSample:
        params = SamplingParams(max_new_tokens=length)
        request = Request(f"prompt {index}", prompts[index], params, key=(index,))
        (delta,) = [delta async for delta in engine.generate(request)]
        return TrainSample(
            name=request.id,
            tokens=[*prompts[index], *delta.tokens],
            prompt_length=len(prompts[index]),
            loss_mask=[1.0] * len(delta.tokens),
            rollout_log_probs=delta.log_probs,
            selections=delta.selections or None,
        )

    async def respond_to_all() -> list[TrainSample]:
        return await asyncio.gather(*map(respond, range(count)))

    return asyncio.run(respond_to_all())


def send_weights(trainer: "Trainer", engine: Engine, version: int) -> None:
    """Give the engine the trainer's weights."""

    async def send() -> None:
        async with engine.weight_update(version) as update:
            await update.send(dict(trainer.exporter))

    asyncio.run(send())


def gaps_around_training(
    trainer: "Trainer", engine: Engine, *, vocab_size: int, steps: int = 3
) -> tuple[float, float]:
    """`largest_gap` on what the engine samples: before the trainer learns from it, and with its new weights."""
    from rlcore.trainer.objectives import SftObjective

    samples = sample_responses(engine, vocab_size=vocab_size)
    before = largest_gap(trainer, samples)
    trainer.prepare_optimizer(Optimizer(lr=1e-3), total_steps=steps)
    for _ in range(steps):
        trainer.train_step(samples, SftObjective())
    send_weights(trainer, engine, version=1)
    return before, largest_gap(trainer, sample_responses(engine, vocab_size=vocab_size))


def largest_gap(trainer: "Trainer", samples: Sequence[TrainSample]) -> float:
    """Largest difference between a log-prob of the trainer and that which the sample knows."""
    found = trainer.log_probs(samples)
    known = {i: torch.tensor(sample.rollout_log_probs) for i, sample in enumerate(samples)}
    return max(float((found[i] - known[i]).abs().max()) for i in known)
