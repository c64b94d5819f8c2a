"""The generation loop: prompts in, groups of scored responses out, filtered, refilled and cut short.

Filters may change what the engine works on, and rewards take as long as they take. So while verdicts are
pending that decide about refill or abort, a deterministic engine is held: what it runs at each of its
steps then follows from its own tokens, never from the clock. Without such decisions nothing is held.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlcore.config.generation import Rollout as RolloutSettings
from rlcore.config.generation import Sampling
from rlcore.data.sample import Status
from rlcore.errors import fail
from rlcore.protocols import FilterContext, SamplingFilter
from rlcore.rollout.attempts import (
    PATIENCE,
    Attempt,
    PromptSource,
    Referee,
    Rollout,
    Scorer,
    drop_metrics,
    nothing_kept,
)
from rlcore.rollout.engine import Engine
from rlcore.rollout.responses import Group, OnProgress, Responder
from rlcore.rollout.reward_process import all_or_first_error
from rlcore.rollout.stream import Stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ABORT_AGAIN_SECONDS = 0.5


class Generator:
    """Makes rollouts and evaluations with one engine, one scorer and one set of filters.

    `stop_token_ids` are the model's own; `max_context_tokens` bounds prompt and response together. `name` tells
    its requests from those of another generator on the same engine.
    """

    def __init__(
        self,
        engine: Engine,
        scorer: Scorer,
        tokenizer: "PreTrainedTokenizerBase",
        settings: RolloutSettings,
        *,
        stop_token_ids: Sequence[int],
        seed: int,
        max_context_tokens: int | None = None,
        filters: Sequence[SamplingFilter] = (),
        name: str = "",
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._referee = Referee(scorer, filters)
        self._responder = Responder(
            engine,
            tokenizer,
            stop_token_ids=stop_token_ids,
            seed=seed,
            max_context_tokens=max_context_tokens,
            mask_offpolicy=settings.mask_offpolicy,
            timeout=settings.request_timeout,
            retries=settings.request_retries,
            name=name,
        )

    @property
    def is_held_up(self) -> bool:
        """Whether responses wait for the engine to get weights."""
        return self._engine.needs_weights

    async def rollout(
        self, source: PromptSource, *, step: int = 0, on_progress: OnProgress | None = None
    ) -> Rollout:
        """Generate until `prompts_per_step` groups are kept, or prompts or patience run out.

        Raises RlcoreError when nothing can be kept, and what the scorer raises.
        """
        wanted = self._settings.prompts_per_step
        progress = _Progress(wanted * self._settings.samples_per_prompt, on_progress)
        run = _Run(self._engine, self._responder, self._referee, self._settings, step, progress)
        return await run.collect(source)

    def stream(self, source: PromptSource, on_progress: OnProgress | None = None) -> Stream:
        """Groups of this source without end, made ahead of who takes them."""
        return Stream(self._engine, self._responder, self._referee, self._settings, source, on_progress)

    async def generate(
        self, groups: list[Group], sampling: Sampling, *, on_progress: OnProgress | None = None
    ) -> list[Group]:
        """Respond to and score all of these groups, unfiltered, in place; failed samples get no reward.

        Raises RlcoreError if every sample failed, and what the scorer raises.
        """
        progress = _Progress(sum(map(len, groups)), on_progress)

        async def one(group: Group) -> list[str]:
            errors = await self._responder.respond(group, sampling, progress.sample_done)
            await self._referee.scorer.score([sample for sample in group if sample.status is not Status.FAILED])
            return errors

        errors = [error for found in await all_or_first_error(map(one, groups)) for error in found]
        if errors and len(errors) == progress.total:
            raise fail("evaluation", f"no response could be made: {errors[0]}")
        return groups


@dataclass
class _Progress:
    """Counts finished samples and their tokens, and tells whoever wants to know."""

    total: int
    tell: OnProgress | None
    done: int = 0
    tokens: int = 0

    def sample_done(self, tokens: int) -> None:
        self.done += 1
        self.tokens += tokens
        self.show()

    def take_back(self, samples: int) -> None:
        """Samples were dropped: others have to be made."""
        self.done -= samples
        self.show()

    def show(self) -> None:
        if self.tell:
            self.tell(min(self.done, self.total), self.total, self.tokens)


@dataclass
class _Run:
    """One rollout under way."""

    engine: Engine
    responder: Responder
    referee: Referee
    settings: RolloutSettings
    step: int
    progress: _Progress
    kept: list[Attempt] = field(default_factory=list)
    spare: list[Attempt] = field(default_factory=list)
    unused: list[Attempt] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    flights: dict[asyncio.Task[None], Attempt] = field(default_factory=dict)
    asked: int = 0
    exhausted: bool = False

    @property
    def wanted(self) -> int:
        return self.settings.prompts_per_step

    @property
    def batch(self) -> int:
        """Groups asked for at a time."""
        return max(self.settings.over_sampling_prompts or 0, self.wanted)

    @property
    def selective(self) -> bool:
        """Whether verdicts decide what the engine works on while other groups are in flight."""
        return bool(self.referee.filters) or self.batch > self.wanted

    async def collect(self, source: PromptSource) -> Rollout:
        try:
            while len(self.kept) < self.wanted and self._launch(source):
                landed = await self._land()
                async with self._held():
                    await self._judge(landed)
                    if len(self.kept) >= self.wanted:
                        await self._cut_short()
        finally:
            for task in self.flights:
                task.cancel()
        self._fill_up()
        if self.settings.partial:
            # A sample whose request failed is never asked again: its group has no future.
            source.put_back([attempt.group for attempt in _ordered(self.unused) if not attempt.errors])
        return Rollout([attempt.group for attempt in _ordered(self.kept)], self._metrics())

    def _launch(self, source: PromptSource) -> bool:
        """Ask for more groups if those kept and in flight cannot be enough; False if nothing is in flight."""
        while (missing := self.wanted - len(self.kept) - len(self.flights)) > 0 and not self.exhausted:
            groups = source.next(self.batch if self.selective else missing)
            self.exhausted = not groups or self.dropped.total() >= PATIENCE * self.wanted
            for group in groups:
                attempt = Attempt(self.asked, group)
                self.flights[asyncio.create_task(self._fly(attempt))] = attempt
                self.asked += 1
        return bool(self.flights)

    async def _fly(self, attempt: Attempt) -> None:
        """Make a group's responses. Where nothing hangs on its verdict, it is scored while others go on."""
        on_sample = self.progress.sample_done
        attempt.errors = await self.responder.respond(attempt.group, self.settings, on_sample)
        if not self.selective:
            await self.referee.score(attempt)

    async def _land(self) -> list[Attempt]:
        """Wait for groups: the next ones where verdicts matter at once, else all. The first error is raised."""
        when = asyncio.FIRST_COMPLETED if self.selective else asyncio.FIRST_EXCEPTION
        done, _ = await asyncio.wait(self.flights, return_when=when)
        for task in done:
            task.result()
        return _ordered(self.flights.pop(task) for task in done)

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[None]:
        if not (self.selective and {"deterministic", "pause_in_place"} <= self.engine.capabilities):
            yield
            return
        await self.engine.pause("in_place")
        try:
            yield
        finally:
            await self.engine.resume()

    async def _judge(self, landed: list[Attempt]) -> None:
        """Score what is not scored yet and let the filters decide, in the order of asking."""
        await all_or_first_error(self.referee.score(attempt) for attempt in landed if attempt.outcomes is None)
        for attempt in landed:
            aborted = any(sample.status is Status.ABORTED for sample in attempt.group)
            if aborted or len(self.kept) >= self.wanted:
                self.unused.append(attempt)
            else:
                self._decide(attempt)
        if self.dropped["failed"] >= self.wanted and not self.kept:
            errors = next(attempt.errors for attempt in landed if attempt.errors)
            raise fail("rollout", f"no response could be made: {errors[0]}")

    def _decide(self, attempt: Attempt) -> None:
        verdict = self.referee.verdict(attempt, self._context())
        if verdict is None:
            self.kept.append(attempt)
            return
        self.dropped[verdict.reason] += 1
        self.progress.take_back(len(attempt.group))
        if verdict.keep_if_short:
            self.spare.append(attempt)

    def _context(self) -> FilterContext:
        return FilterContext(
            step=self.step,
            wanted=self.wanted,
            kept=len(self.kept),
            in_flight=len(self.flights),
            version=self.engine.version,
        )

    async def _cut_short(self) -> None:
        """End what is still in flight. Asked again until it has landed: a request may start after an abort."""
        while self.flights:
            await self.responder.abort([attempt.group for attempt in self.flights.values()])
            done, _ = await asyncio.wait(self.flights, timeout=ABORT_AGAIN_SECONDS)
            self.unused += [self.flights.pop(task) for task in done]

    def _fill_up(self) -> None:
        """Let dropped groups that may return do so if too few were kept."""
        self.kept += self.spare[: self.wanted - len(self.kept)]
        if not self.kept:
            raise nothing_kept(self.asked, self.dropped)

    def _metrics(self) -> dict[str, float]:
        return {
            "rollout/groups_asked": self.asked,
            "rollout/groups_cut_short": len(self.unused),
            **drop_metrics(self.dropped),
            "rollout/retries": self.responder.retries_since(),
            "rollout/tokens": self.progress.tokens,
        }


def _ordered(attempts: Iterable[Attempt]) -> list[Attempt]:
    return sorted(attempts, key=lambda attempt: attempt.order)
