"""When samples are made and when they are trained on: in turn, one step ahead, or all the time within a bound.

Whatever is made and not yet trained belongs to the state of the run: checkpoints hold it, so that no sample is
lost or trained twice. How a rollout is made is the generator's business, what a step is the loop's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

import torch

from rlcore.config.generation import Rollout as RolloutSettings
from rlcore.data.prompts import PromptSource
from rlcore.data.sample import Sample
from rlcore.rollout.attempts import Rollout
from rlcore.rollout.generation import Generator
from rlcore.rollout.responses import OnProgress
from rlcore.rollout.stream import Stream
from rlcore.threads import compute_with

Metrics = dict[str, float]
T = TypeVar("T")
# Key of a run's state under which stands what is ahead of training.
AHEAD = "ahead"
LOOK_SECONDS = 1.0


class Pipeline(Protocol):
    """Gives each step its samples, and lets generation go on beside training where the mode says so.

    A step calls `take`, `train` and `settle`, in this order.
    """

    async def take(self, step: int) -> Rollout:
        """Wait for the groups of a step, counted from 1. Raises RlcoreError as generation does."""
        ...

    async def train(self, work: Callable[[], Metrics]) -> Metrics:
        """Do the step's training, which blocks. It is never left halfway: whoever cancels waits for its end."""
        ...

    async def settle(self) -> Mapping[str, Any]:
        """The state to be saved with the weights that the step has left, what is ahead of them included.

        A cancellation is raised by the caller's next await, so that the step can be recorded first.
        """
        ...

    async def close(self) -> None:
        """End what is under way."""
        ...


def make_pipeline(
    settings: RolloutSettings,
    generator: Generator,
    source: PromptSource,
    state: Mapping[str, Any],
    total_steps: int,
    sync: Callable[[], Awaitable[None]],
    on_progress: OnProgress,
) -> Pipeline:
    """The pipeline of the recipe's mode. `source` stands where `state` says, from which the rest is taken.

    `sync` gives the engine the weights of now; it may be called while requests run.
    """
    ahead = state.get(AHEAD, {"groups": [], "metrics": {}})
    if settings.mode == "async":
        stream = generator.stream(source, on_progress)
        stream.restore(ahead["groups"])
        return Continuous(settings, stream, source, total_steps, sync)

    async def make(step: int) -> Rollout:
        return await generator.rollout(source, step=step, on_progress=on_progress)

    ready = Rollout(
        [[Sample.from_dict(sample) for sample in saved["group"]] for saved in ahead["groups"]],
        ahead["metrics"],
    )
    is_whole = len(ready.groups) == settings.prompts_per_step and all(one["kept"] for one in ahead["groups"])
    if settings.mode == "one_step" and is_whole:
        return OneStepAhead(make, source, total_steps, sync, generator, ready)
    source.put_back(ready.groups)
    if settings.mode == "one_step":
        return OneStepAhead(make, source, total_steps, sync, generator)
    return InTurn(make, source, sync)


class InTurn:
    """Generates with the newest weights, then trains: every token is of the version that it trains."""

    def __init__(
        self,
        make: Callable[[int], Awaitable[Rollout]],
        source: PromptSource,
        sync: Callable[[], Awaitable[None]],
    ) -> None:
        self._make = make
        self._source = source
        self._sync = sync

    async def take(self, step: int) -> Rollout:
        await self._sync()
        return await self._make(step)

    async def train(self, work: Callable[[], Metrics]) -> Metrics:
        return work()

    async def settle(self) -> Mapping[str, Any]:
        return self._source.state()

    async def close(self) -> None:
        pass


class OneStepAhead:
    """Generates the next step's samples while a step trains: they are one version behind.

    Weights come to the engine between two rollouts only. Given the same recipe, the same samples meet the same
    weights, whatever takes how long.
    """

    def __init__(
        self,
        make: Callable[[int], Awaitable[Rollout]],
        source: PromptSource,
        total_steps: int,
        sync: Callable[[], Awaitable[None]],
        generator: Generator,
        ready: Rollout | None = None,
    ) -> None:
        self._make = make
        self._source = source
        self._total_steps = total_steps
        self._sync = sync
        self._generator = generator
        self._ready = ready
        self._making: asyncio.Future[Rollout] | None = None
        self._before: Mapping[str, Any] = {}

    async def take(self, step: int) -> Rollout:
        await self._sync()
        # What is still being made has failed, or waits for weights.
        rollout = await self._making if self._making else self._ready or await self._make(step)
        self._making = self._ready = None
        if step < self._total_steps:
            self._before = self._source.state()
            self._making = asyncio.ensure_future(self._make(step + 1))
        return rollout

    async def train(self, work: Callable[[], Metrics]) -> Metrics:
        return await beside_the_loop(work)

    async def settle(self) -> Mapping[str, Any]:
        """See `Pipeline.settle`. Prompts of a rollout that is cancelled or fails count as never asked for.

        So do those of one that waits for weights: the next `take` brings them, and it goes on.
        """
        making = self._making
        if making is None:
            return self._source.state()
        await _end(making, hurry=making.cancel, unless=lambda: self._generator.is_held_up)
        if not making.done():
            return self._before
        if making.cancelled() or making.exception():
            self._source.restore(self._before)
            return self._before
        self._making, self._ready = None, making.result()
        groups = [
            {"kept": True, "group": [sample.to_dict() for sample in group]} for group in self._ready.groups
        ]
        return {**self._source.state(), AHEAD: {"groups": groups, "metrics": self._ready.metrics}}

    async def close(self) -> None:
        if self._making:
            self._making.cancel()
            await asyncio.wait([self._making])


class Continuous:
    """Generates all the time; new weights come to requests that run, and every token says by which it was made.

    With version v in training, at most (max_staleness + 1) steps' groups stand in line, those of the step with
    version v included. The last of them trains version v + max_staleness, and no group joins the line before
    v is in the engine: no token can be older than the bound. Where the line is full, the engine waits.
    """

    def __init__(
        self,
        settings: RolloutSettings,
        stream: Stream,
        source: PromptSource,
        total_steps: int,
        sync: Callable[[], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._stream = stream
        self._source = source
        self._total_steps = total_steps
        self._sync = sync

    async def take(self, step: int) -> Rollout:
        await self._sync()
        version = step - 1
        steps = min(self._settings.max_staleness + 1, self._total_steps - version)
        self._stream.allow(steps * self._settings.prompts_per_step)
        return await self._stream.take(version)

    async def train(self, work: Callable[[], Metrics]) -> Metrics:
        return await beside_the_loop(work)

    async def settle(self) -> Mapping[str, Any]:
        return {**self._source.state(), AHEAD: {"groups": self._stream.state(), "metrics": {}}}

    async def close(self) -> None:
        await self._stream.close()


async def beside_the_loop(work: Callable[[], T], threads: int | None = None) -> T:
    """Run blocking work on a thread, to its end; a cancellation is raised by the caller's next await.

    It computes with so many `threads`, by default those of the caller.
    """
    # A new thread would begin with the number that the local engine happens to compute with.
    number = threads or torch.get_num_threads()

    def run() -> T:
        compute_with(number)
        return work()

    working = asyncio.ensure_future(asyncio.to_thread(run))
    await _end(working)
    return working.result()


async def _end(
    task: "asyncio.Future[Any]",
    hurry: Callable[[], object] = lambda: None,
    unless: Callable[[], bool] = lambda: False,
) -> None:
    """Wait until a task has ended, or `unless` is true.

    A cancellation calls `hurry`, and is raised by the caller's next await.
    """
    cancelled = False
    while not (task.done() or unless()):
        try:
            await asyncio.wait([task], timeout=LOOK_SECONDS)
        except asyncio.CancelledError:
            cancelled = True
            hurry()
    if cancelled and (caller := asyncio.current_task()):
        caller.uncancel()
        caller.cancel()
