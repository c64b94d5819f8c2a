"""Makes the heavy objects of a run from a prepared recipe: the trainer, the engine, and who scores for it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import torch

from rlcore.config.schema import Optimizer
from rlcore.controller.preparation import Prepared
from rlcore.protocols import SamplingFilter
from rlcore.rollout.generation import Generator
from rlcore.rollout.local import LocalEngine
from rlcore.rollout.rewards import RewardRunner
from rlcore.trainer.setup import initialize
from rlcore.trainer.trainer import Trainer


def make_trainer(
    prepared: Prepared, optimizer: Optimizer, total_updates: int, *, temperature: float
) -> Trainer:
    """Load the policy into Megatron, ready to train. Raises RlcoreError for weights that cannot be used."""
    recipe = prepared.recipe
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    initialize(recipe.parallel, recipe.seed)
    trainer = Trainer(
        prepared.model.spec,
        prepared.model.bridge,
        prepared.checkpoint,
        model=recipe.model,
        parallel=recipe.parallel,
        recompute=recipe.recompute,
        megatron=recipe.megatron,
        max_tokens_per_gpu=recipe.train.max_tokens_per_gpu,
        bad_steps=recipe.train.bad_steps,
        temperature=temperature,
        log_probs_chunk=recipe.train.log_probs_chunk,
        reference=Path(recipe.algorithm.kl.reference) if recipe.algorithm.kl.reference else None,
    )
    trainer.prepare_optimizer(optimizer, total_updates)
    return trainer


@asynccontextmanager
async def running_engine(prepared: Prepared) -> AsyncIterator[LocalEngine]:
    """Load the engine's own copy of the policy; the engine ends with the body."""
    rollout = prepared.recipe.rollout
    engine = LocalEngine(
        Path(rollout.checkpoint or prepared.checkpoint),
        concurrency=rollout.local.concurrency,
        dtype=rollout.local.dtype or prepared.recipe.model.dtype,
        overrides=prepared.recipe.model.overrides,
    )
    try:
        yield engine
    finally:
        await engine.close()


def make_generator(
    prepared: Prepared, engine: LocalEngine, scorer: RewardRunner, filters: Sequence[SamplingFilter] = ()
) -> Generator:
    """Join engine, rewards and filters into what makes rollouts and evaluations."""
    return Generator(
        engine,
        scorer,
        prepared.tokenizer,
        prepared.recipe.rollout,
        stop_token_ids=prepared.stop_ids,
        seed=prepared.recipe.seed,
        max_context_tokens=prepared.context_tokens,
        filters=filters,
    )
