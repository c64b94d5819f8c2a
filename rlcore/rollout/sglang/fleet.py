"""The servers of an engine as far as they live: who is asked, who is lost, and who comes back.

A server that dies or hangs leaves the fleet, and its requests are lost, to be asked again elsewhere. One that
was launched here is started anew, and waits: it has old weights until the next update reaches it, unless there
has been none.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from rlcore.errors import RlcoreError, fail
from rlcore.rollout.sglang.client import Client, ServerLost
from rlcore.rollout.sglang.server import Server

T = TypeVar("T")

LOOK_SECONDS = 5.0
COME_SECONDS = 0.2
logger = logging.getLogger(__name__)


class Fleet:
    """Servers by what may be asked of them: `serving` have the newest weights, `joining` wait for some.

    `lost_after` are the seconds that a server may take to say how it is, and the `router` in front of them.
    `on_lost` is told who is lost and why; a router that is does not come back.
    """

    def __init__(
        self,
        workers: Sequence[Client],
        processes: Mapping[str, Server] | None = None,
        lost_after: float = 60.0,
        router: Client | None = None,
    ) -> None:
        """`workers` have been described; `processes` are those launched here, by URL."""
        self.serving = list(workers)
        self.joining: list[Client] = []
        self.on_lost: Callable[[Client, str], None] = lambda worker, why: None
        self._processes = dict(processes or {})
        self._lost_after = lost_after
        self._router = router
        self._updating = self._has_updated = False
        # Lost and to come back; those of them whose processes have begun to.
        self._coming = self._starting = 0
        self._may_start = asyncio.Event()
        self._may_start.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def each(self, call: Callable[[Client], Awaitable[T]], *, joining: bool = False) -> list[T]:
        """Call all that serve, and if asked for those that wait to; who does not answer leaves.

        Raises as they do, RlcoreError if nobody is left that serves.
        """
        asked = (*self.serving, *(self.joining if joining else ()))
        answers = await asyncio.gather(*(call(worker) for worker in asked), return_exceptions=True)
        for worker, answer in zip(asked, answers, strict=True):
            if isinstance(answer, ServerLost):
                self.lose(worker, str(answer))
            elif isinstance(answer, BaseException):
                raise answer
        self.check()
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    @property
    def is_waiting(self) -> bool:
        """Whether nobody serves, but somebody will, with the next weights."""
        is_coming = self._coming and self._may_start.is_set()
        return not self.serving and bool(self.joining or is_coming)

    def check(self) -> None:
        """Raise RlcoreError if nobody is left to be asked, now or later."""
        if not (self.serving or self.is_waiting):
            remedy = "look into its log, then resume the run: it starts its servers anew"
            raise fail("rollout", "no SGLang server is left that has the current weights", remedy)

    def lose(self, worker: Client, why: str) -> None:
        """Ask this one no more, and start it anew if it was launched here."""
        if worker not in (*self.serving, *self.joining):
            return
        self.serving = [one for one in self.serving if one is not worker]
        self.joining = [one for one in self.joining if one is not worker]
        logger.warning("SGLang server lost: %s", why)
        self.on_lost(worker, why)
        self._coming += worker.url in self._processes
        self._begin(self._replace(worker))

    def suspect(self, worker: Client) -> None:
        """Ask this one how it is, now."""
        self._begin(self._examine(worker))

    def suspect_router(self) -> None:
        """Ask the router how it is, now."""
        self._begin(self._examine_router())

    async def somebody(self) -> None:
        """Wait for one who comes back, where there is nobody else. Raises RlcoreError where nobody does."""
        while not (self.serving or self.joining):
            self.check()
            await asyncio.sleep(COME_SECONDS)

    def begin_update(self) -> list[Client]:
        """Who is to have new weights. Loading keeps them busy: they are left alone until the update ends."""
        self._updating = self._has_updated = True
        return [*self.serving, *self.joining]

    async def give_up_update(self, updated: Sequence[Client]) -> None:
        """The update has failed: find out who is lost."""
        self._updating = False
        await asyncio.gather(*(self._examine(worker) for worker in updated))

    def end_update(self, updated: Sequence[Client]) -> None:
        """All of them that live have the newest weights, and serve from here on."""
        self._updating = False
        living = [worker for worker in updated if worker in (*self.serving, *self.joining)]
        self.serving = living
        self.joining = [worker for worker in self.joining if worker not in living]

    async def hold_starts(self) -> None:
        """Start no server anew until `allow_starts`: others get the memory that it would take.

        Those that are starting are waited for: before they have come they cannot give theirs up.
        """
        await self.somebody()
        self._may_start.clear()
        while self._starting:
            await asyncio.sleep(COME_SECONDS)

    def allow_starts(self) -> None:
        self._may_start.set()

    def start_watching(self) -> None:
        """Look after the servers until `close`."""
        self._begin(self._watch())

    async def close(self) -> None:
        """End what was launched here, and let go of the rest."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        for process in self._processes.values():
            process.stop()
        await asyncio.gather(*(worker.close() for worker in (*self.serving, *self.joining)))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(LOOK_SECONDS, self._lost_after))
            for worker in (*self.serving, *self.joining):
                if (process := self._processes.get(worker.url)) and not process.alive:
                    self.lose(worker, f"{worker.url} has ended; the end of {process.log} may say why")
            workers = () if self._updating else (*self.serving, *self.joining)
            await asyncio.gather(self._examine_router(), *map(self._examine, workers))

    async def _examine_router(self) -> None:
        if not (router := self._router):
            return
        try:
            async with asyncio.timeout(self._lost_after):
                await router.get("/health")
        except (TimeoutError, ServerLost, RlcoreError) as error:
            # Everyone whose request it had asks.
            if self._router is None:
                return
            self._router = None
            why = f"the router at {router.url} is lost, requests go on without it: {error or 'it hangs'}"
            logger.warning("%s", why)
            self.on_lost(router, why)

    async def _examine(self, worker: Client) -> None:
        try:
            async with asyncio.timeout(self._lost_after):
                await worker.health()
        except TimeoutError:
            # An update may have begun meanwhile: what loads weights says nothing.
            if not self._updating:
                self.lose(worker, f"{worker.url} has not answered for {self._lost_after:g} s")
        except (ServerLost, RlcoreError) as error:
            self.lose(worker, str(error))

    async def _replace(self, worker: Client) -> None:
        """Let go of a lost server; start it again where it was launched here."""
        # Ends every call that still waits for it.
        await worker.close()
        if worker.url not in self._processes:
            return
        try:
            newcomer = await self._start_again(worker.url)
        except (ServerLost, RlcoreError) as error:
            logger.warning("SGLang server does not come back: %s", error)
        else:
            since = " from the next weights on" if self._has_updated else ""
            logger.warning("SGLang server at %s is back, and serves%s", worker.url, since)
            (self.joining if self._has_updated else self.serving).append(newcomer)
        finally:
            self._coming -= 1

    async def _start_again(self, url: str) -> Client:
        self._processes[url].stop()
        await self._may_start.wait()
        self._starting += 1
        try:
            process = self._processes[url] = self._processes[url].again()
            await process.wait_healthy()
            newcomer = Client(url)
            await newcomer.describe()
            return newcomer
        finally:
            self._starting -= 1

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
