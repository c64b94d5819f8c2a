"""Makes the heavy objects of a run from a prepared recipe: the trainer, the engine, and who scores for it."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from rlcore.config.schema import Optimizer
from rlcore.controller.policy import Policy
from rlcore.controller.preparation import Prepared
from rlcore.controller.site import Site
from rlcore.controller.throughput import Throughput, peak_tflops
from rlcore.controller.trainer_group import trainer_group
from rlcore.controller.trainer_job import TrainerJob
from rlcore.protocols import SamplingFilter
from rlcore.registry import lock
from rlcore.rollout.engine import Engine
from rlcore.rollout.generation import Generator
from rlcore.rollout.local import LocalEngine
from rlcore.rollout.rewards import RewardRunner
from rlcore.telemetry.log_files import LogFolder


@contextmanager
def running_policy(
    prepared: Prepared, site: Site, optimizer: Optimizer, total_updates: int, *, temperature: float, quiet: bool
) -> Iterator[Policy]:
    """Load the policy into Megatron on every rank of the site, ready to train; the ranks end with the body.

    Raises RlcoreError for weights that cannot be used.
    """
    recipe, ranks = prepared.recipe, prepared.layout.world_size
    job = TrainerJob(
        recipe,
        prepared.checkpoint,
        optimizer,
        total_updates,
        temperature,
        tuple(lock.make(prepared.model.plugins)),
    )
    group = trainer_group(job, ranks, site, quiet)
    try:
        peak = peak_tflops(group.call("device_name")[0], recipe.model.dtype)
        yield Policy(group, Throughput(prepared.model.spec.flops, ranks, peak))
    finally:
        group.close()


@asynccontextmanager
async def running_engine(prepared: Prepared, site: Site, logs: LogFolder) -> AsyncIterator[Engine]:
    """Load the engine's own copy of the policy; the engine ends with the body.

    What processes of its own print goes to `logs`.
    """
    if prepared.recipe.rollout.engine == "sglang":
        # A run without servers needs no HTTP client.
        from rlcore.controller.serving import running_servers

        async with running_servers(prepared, site, logs) as servers:
            yield servers
    else:
        async with _local_engine(prepared) as local:
            yield local


@asynccontextmanager
async def _local_engine(prepared: Prepared) -> AsyncIterator[LocalEngine]:
    rollout = prepared.recipe.rollout
    engine = LocalEngine(
        Path(rollout.checkpoint or prepared.checkpoint),
        concurrency=rollout.local.concurrency,
        dtype=rollout.local.dtype or prepared.recipe.model.dtype,
        overrides=prepared.recipe.model.overrides,
        mend=prepared.model.spec.mend_transformers,
        serve=prepared.model.spec.serve_transformers,
    )
    try:
        yield engine
    finally:
        await engine.close()


def make_generator(
    prepared: Prepared,
    engine: Engine,
    scorer: RewardRunner,
    filters: Sequence[SamplingFilter] = (),
    name: str = "",
) -> Generator:
    """Join engine, rewards and filters into what makes rollouts and evaluations; see `Generator` for `name`."""
    return Generator(
        engine,
        scorer,
        prepared.tokenizer,
        prepared.recipe.rollout,
        stop_token_ids=prepared.stop_ids,
        seed=prepared.recipe.seed,
        max_context_tokens=prepared.context_tokens,
        filters=filters,
        name=name,
    )
