"""A stream of groups: made all the time, ahead of who trains on them, handed out in the order of asking.

In that order a long response is waited for and never overtaken, so that training sees no more short ones than
the policy makes. And how many steps a group stands in line follows from those before it: who bounds the line
bounds the age of every token, and nothing has to be thrown away.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

from rlcore.config.generation import Rollout as RolloutSettings
from rlcore.data.sample import Sample, Status
from rlcore.errors import fail
from rlcore.protocols import FilterContext
from rlcore.rollout.attempts import (
    PATIENCE,
    Attempt,
    PromptSource,
    Referee,
    Rollout,
    drop_metrics,
    nothing_kept,
)
from rlcore.rollout.engine import Engine
from rlcore.rollout.responses import OnProgress, Responder, mask_older


class Stream:
    """Keeps an allowed number of groups in line: in flight, or finished and waiting to be taken.

    Groups that filters drop leave the line, and others are asked for in their place.
    """

    def __init__(
        self,
        engine: Engine,
        responder: Responder,
        referee: Referee,
        settings: RolloutSettings,
        source: PromptSource,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._engine = engine
        self._responder = responder
        self._referee = referee
        self._settings = settings
        self._source = source
        self._on_progress = on_progress
        self._line: list[Attempt] = []
        self._spare: list[Attempt] = []
        self._flights: dict[asyncio.Task[None], Attempt] = {}
        self._allowed = self._asked = self._renewed = self._tokens = 0
        self._dropped: Counter[str] = Counter()
        self._error: BaseException | None = None
        self._moved = asyncio.Event()

    def allow(self, groups: int) -> None:
        """Let so many groups stand in line, those included that stand there."""
        self._allowed = groups
        in_flight = set(self._flights.values())
        for attempt in self._line:
            if not attempt.kept and attempt not in in_flight:
                self._start(attempt)
        self._launch()

    async def take(self, version: int) -> Rollout:
        """Wait for the next step's groups, the first in line; `version` is of the weights that they will train.

        A group with a token beyond `max_staleness` is made anew; that only happens where it was larger before a
        resume. Raises RlcoreError when there is nothing to wait for, and what the scorer raises.
        """
        oldest = version - self._settings.max_staleness
        while True:
            ready = self._ready()
            for attempt in ready:
                if any(made < oldest for sample in attempt.group for made in sample.versions):
                    self._renew(attempt)
            if len(ready) == self._settings.prompts_per_step and all(attempt.kept for attempt in ready):
                break
            await self._move()
        del self._line[: len(ready)]
        self._allowed -= len(ready)
        groups = [attempt.group for attempt in ready]
        if self._settings.mask_offpolicy:
            mask_older(groups, version)
        return Rollout(groups, self._metrics())

    def state(self) -> list[dict[str, Any]]:
        """The groups in line, in JSON-ready form; those in flight as they were before."""
        return [
            {"kept": attempt.kept, "group": [sample.to_dict() for sample in attempt.group]}
            for attempt in self._line
        ]

    def restore(self, state: Iterable[Mapping[str, Any]]) -> None:
        """Have the groups of a saved state in line again."""
        for saved in state:
            group = [Sample.from_dict(sample) for sample in saved["group"]]
            self._line.append(Attempt(self._asked, group, kept=saved["kept"]))
            self._asked += 1

    async def close(self) -> None:
        """End what is in flight."""
        for task in self._flights:
            task.cancel()
        if self._flights:
            await asyncio.wait(list(self._flights))

    def _ready(self) -> list[Attempt]:
        """Finished groups at the head of the line, at most those of one step."""
        head = self._line[: self._settings.prompts_per_step]
        return list(takewhile(lambda attempt: attempt.kept, head))

    async def _move(self) -> None:
        """Wait until a group has landed; where none is in flight, dropped ones that may return do so."""
        if self._error:
            raise self._error
        if self._flights:
            self._moved.clear()
            await self._moved.wait()
        elif self._spare:
            for attempt in self._spare:
                attempt.kept = True
            self._line += self._spare
            self._spare = []
        else:
            raise nothing_kept(self._asked, self._dropped)

    def _launch(self) -> None:
        """Ask for as many groups as may join the line."""
        if self._dropped.total() >= PATIENCE * self._settings.prompts_per_step:
            return
        room = self._allowed - len(self._line)
        for group in self._source.next(room) if room > 0 else ():
            attempt = Attempt(self._asked, group)
            self._asked += 1
            self._line.append(attempt)
            self._start(attempt)

    def _start(self, attempt: Attempt) -> None:
        task = asyncio.create_task(self._fly(attempt))
        self._flights[task] = attempt
        task.add_done_callback(self._landed)

    async def _fly(self, attempt: Attempt) -> None:
        """Make, score and judge a group; what somebody else has cut short goes on."""
        aborted = True
        while aborted and not attempt.errors:
            attempt.errors = await self._responder.respond(attempt.group, self._settings, self._count)
            aborted = any(sample.status is Status.ABORTED for sample in attempt.group)
        await self._referee.score(attempt)
        self._judge(attempt)

    def _count(self, tokens: int) -> None:
        self._tokens += tokens

    def _landed(self, task: asyncio.Task[None]) -> None:
        del self._flights[task]
        self._moved.set()
        if task.cancelled():
            return
        self._error = self._error or task.exception()
        if self._on_progress:
            samples, wanted = self._settings.samples_per_prompt, self._settings.prompts_per_step
            self._on_progress(len(self._ready()) * samples, wanted * samples, self._tokens)

    def _judge(self, attempt: Attempt) -> None:
        drop = self._referee.verdict(attempt, self._context())
        if drop is None:
            attempt.kept = True
            return
        self._line.remove(attempt)
        self._dropped[drop.reason] += 1
        if drop.keep_if_short:
            self._spare.append(attempt)
        if attempt.errors and self._nothing_works():
            self._error = fail("rollout", f"no response could be made: {attempt.errors[0]}")
        self._launch()

    def _nothing_works(self) -> bool:
        failed = self._dropped["failed"] >= self._settings.prompts_per_step
        return failed and not any(attempt.kept for attempt in self._line)

    def _context(self) -> FilterContext:
        version = self._engine.version
        return FilterContext(
            step=version + 1,
            wanted=self._settings.prompts_per_step,
            kept=sum(attempt.kept for attempt in self._line),
            in_flight=len(self._flights) - 1,
            version=version,
        )

    def _renew(self, attempt: Attempt) -> None:
        """Make a group again, from its prompt alone."""
        self._renewed += 1
        attempt.kept = False
        attempt.group = [sample.without_response() for sample in attempt.group]
        self._start(attempt)

    def _metrics(self) -> dict[str, float]:
        """What has happened since the last step's groups were taken."""
        metrics = {
            "rollout/groups_waiting": float(sum(attempt.kept for attempt in self._line)),
            "rollout/groups_renewed": self._renewed,
            "rollout/tokens": self._tokens,
            **drop_metrics(self._dropped),
            "rollout/retries": self._responder.retries_since(),
        }
        self._renewed = self._tokens = 0
        self._dropped.clear()
        self._spare = []
        return metrics
