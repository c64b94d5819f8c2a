"""Whose turn it is on GPUs that trainer and engine share: one gives up its memory before the other takes it.

A step goes from training (the trainer has everything) over the sync (both have weights, and nothing else) to
generation (the engine has everything). Where nothing is shared, nothing moves.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress

from rlcore.config.rules import offloads_rollout, offloads_train
from rlcore.config.schema import Recipe
from rlcore.controller.policy import Policy
from rlcore.controller.verification import Served
from rlcore.errors import RlcoreError
from rlcore.rollout.engine import Engine

GB = 1e9


class Turns:
    """The turns of one run, as its recipe has them. `metrics` say how much memory the trainer gave up last."""

    def __init__(self, recipe: Recipe, policy: Policy, engine: Engine) -> None:
        self._policy = policy
        self._engine = engine
        self._trainer_leaves = offloads_train(recipe)
        self._engine_leaves = offloads_rollout(recipe) and "sleep" in engine.capabilities
        self._engine_sleeps = False
        self.metrics: dict[str, float] = {}

    @property
    def are_taken(self) -> bool:
        """Whether any memory changes hands."""
        return self._trainer_leaves or self._engine_leaves

    async def to_training(self) -> None:
        """Have all of the trainer in memory, once nothing of the engine is."""
        await self._put_engine_to_sleep()
        if self._trainer_leaves:
            self._policy.occupy()

    async def to_sync(self) -> None:
        """Have the trainer's weights alone; the engine takes memory for its own as they come."""
        await self._put_engine_to_sleep()
        if self._trainer_leaves:
            self._policy.release("states", "gradients")
            self._policy.occupy("weights")

    async def to_generation(self) -> None:
        """Have all of the engine in memory, once nothing of the trainer is, and let it go on."""
        if self._trainer_leaves:
            self.metrics = {"memory/offloaded_gb": self._policy.release() / GB}
        if self._engine_sleeps:
            self._engine_sleeps = False
            await self._engine.wake()
        await self._engine.resume()

    @asynccontextmanager
    async def for_a_score(self) -> AsyncIterator[None]:
        """In the middle of generation, with nothing under way, let the trainer have its weights for a while."""
        if not self._trainer_leaves:
            yield
            return
        served = self._engine if self._engine_leaves and isinstance(self._engine, Served) else None
        async with served.without_cache() if served else nullcontext():
            yield
            self._policy.release()

    async def end(self) -> None:
        """However the run ends, what is to be saved must be in memory; a lost engine holds none."""
        if self._policy.alive:
            with suppress(RlcoreError):
                await self.to_training()

    async def _put_engine_to_sleep(self) -> None:
        if self._engine_leaves and not self._engine_sleeps:
            await self._engine.sleep()
            self._engine_sleeps = True
