"""One or several SGLang servers as one engine: who answers which request, and what all of them do together.

Prompts and weights go where the servers are; how weights travel is a transport's, given as `updates`; that a
server may die is the fleet's.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from rlcore.errors import RlcoreError, fail
from rlcore.rollout.engine import Delta, FinishReason, Health, PauseMode, Request, WeightUpdate
from rlcore.rollout.sglang.answer import Answer
from rlcore.rollout.sglang.client import Client, ServerInfo, ServerLost
from rlcore.rollout.sglang.fleet import Fleet
from rlcore.rollout.sglang.server import Server

T = TypeVar("T")

# A request that an abort did not reach in this time is ended on this side, with what has come so far.
ABORT_SECONDS = 20.0
# The kinds of memory that a server can give up.
MEMORY = ("weights", "kv_cache", "cuda_graph")


class ServedUpdate(WeightUpdate, Protocol):
    """A weight update of servers. `torn` says that some have a part of the new weights, and no way back."""

    torn: bool


# Opens an update of all these servers to a version; leaving it commits.
Updates = Callable[[Sequence[Client], int], AbstractAsyncContextManager[ServedUpdate]]


@dataclass(eq=False)
class Flight:
    """A request under way, through `gate`, under a name of its own there; `worker` is the one it counts for.

    `copy` is the one of attention that has it, where servers have several.
    """

    request: Request
    worker: Client
    gate: Client
    copy: int | None = None
    answer: Answer = field(default_factory=Answer)
    inbox: "asyncio.Queue[Delta | Exception]" = field(default_factory=asyncio.Queue)
    # Servers abort every request whose name begins with the one given: all names begin with a different one.
    rid: str = field(default_factory=lambda: uuid4().hex)
    sent: int = 0
    task: "asyncio.Task[None] | None" = None

    def deliver(self) -> None:
        self.inbox.put_nowait(self.answer.since(self.sent))
        self.sent = len(self.answer.tokens)


class SGLangEngine:
    """`rlcore.rollout.engine.Engine` on servers that run the same model; `open_engine` makes one.

    Log-probs are those of the tempered distribution before `top_k` and `top_p` cut it; greedy requests report
    them at temperature 1. Servers also stop at the end tokens of the model's own configuration. A stop string
    that began before a request was resumed is not seen.

    Draws repeat only where servers were launched with `enable_deterministic_inference`: "seeded".

    A weight update under running requests keeps their cached keys and values; `pause("retract")` before it
    has them recomputed. Requests that come later never share a prefix with older weights. An update that fails
    halfway cannot be taken back ("rollback" is no capability): until one succeeds, nothing is generated.
    """

    def __init__(
        self,
        fleet: Fleet,
        updates: Updates,
        *,
        vocab_size: int,
        router: Client | None = None,
        is_split: bool = False,
    ) -> None:
        """Requests go through `router` if there is one, all else straight to the workers of the fleet.

        A router knows no weight versions: once it, or a server, is lost, requests go straight, too. Where
        workers are split into those that read prompts and those that write, only the router can be asked.
        """
        self._fleet = fleet
        self._fleet.on_lost = self._lose
        self.capabilities = _capabilities([worker.info for worker in fleet.serving])
        self._updates = updates
        self._vocab_size = vocab_size
        self._router = router
        self._is_split = is_split
        self._is_routed = router is not None
        self._flights: dict[str, Flight] = {}
        self._version = 0
        # Names the prefixes that requests may share; servers may have cached some before this engine came.
        self._cache = uuid4().hex
        self._paused: PauseMode | None = None
        # What each server has given up: it can only take back that.
        self._released: dict[Client, set[str]] = {}
        self._torn = ""

    @property
    def version(self) -> int:
        return self._version

    @property
    def needs_weights(self) -> bool:
        return bool(self._torn) or self._fleet.is_waiting

    @property
    def workers(self) -> Sequence[Client]:
        """Those that have the current weights."""
        return self._fleet.serving

    @property
    def answering(self) -> Sequence[Client]:
        """Those that can be asked for tokens: the workers, or the router where these are split."""
        return [self._router] if self._router and self._is_split else self.workers

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        """See `Engine.generate`. Raises RlcoreError for a request that is refused, ServerLost if it is lost."""
        self._check(request)
        if finish := _finished(request):
            yield Delta([], [], [], finish)
            return
        worker = self._choose(request)
        gate = self._router if self._router and self._is_routed else worker
        copy = self._choose_copy(request, worker)
        flight = self._flights[request.id] = Flight(request, worker, gate, copy)
        flight.task = asyncio.create_task(self._fly(flight))
        try:
            while True:
                delta = await flight.inbox.get()
                if isinstance(delta, Exception):
                    raise delta
                yield delta
                if delta.finish:
                    return
        finally:
            await self._cut([flight])

    async def abort(self, ids: Sequence[str] | None = None) -> None:
        """See `Engine.abort`; unknown ids are those that have just ended, and are passed over."""
        names = list(self._flights) if ids is None else ids
        flights = [self._flights[name] for name in names if name in self._flights]
        if not flights:
            return
        rids = None if len(flights) == len(self._flights) else [flight.rid for flight in flights]
        await self._all(lambda worker: worker.abort(rids))
        tasks = [flight.task for flight in flights if flight.task]
        # What is held in place answers only when it is let go.
        await asyncio.wait(tasks, timeout=0 if self._paused == "in_place" else ABORT_SECONDS)
        await self._cut(flights)

    async def pause(self, mode: PauseMode = "retract") -> None:
        """Hold all workers. "retract" frees their caches of running requests, "abort" ends these."""
        self._paused = mode
        await self._all(lambda worker: worker.pause(mode))

    async def resume(self) -> None:
        self._paused = None
        await self._all(lambda worker: worker.resume())

    @asynccontextmanager
    async def weight_update(self, version: int) -> AsyncIterator[WeightUpdate]:
        """See `Engine.weight_update`; nothing is generated until it is committed on every server.

        Where all servers are lost, it begins once one of them is back.
        """
        await self._fleet.somebody()
        if not self._paused:
            await self._all(lambda worker: worker.pause("in_place"))
        await self._occupy("weights")
        update: ServedUpdate | None = None
        updated = self._fleet.begin_update()
        try:
            async with self._updates(updated, version) as update:
                yield update
            self._fleet.end_update(updated)
            await self._all(lambda worker: worker.set_version(version))
        except BaseException as error:
            await self._fleet.give_up_update(updated)
            if update and update.torn:
                self._torn = f"the update to weights of version {version} failed halfway: {error}"
                await self._cut(self._flights.values())
            else:
                await self._go_on()
            raise
        self._version, self._torn, self._cache = version, "", uuid4().hex
        if self._paused in ("retract", "abort"):
            # What retracted requests had computed would be found again, under the prefix that they bring along.
            await self._all(lambda worker: worker.flush())
        await self._go_on()

    async def _go_on(self) -> None:
        """Let servers generate again, unless they are held or have no memory to do it in."""
        if not self._paused:
            await self._all(lambda worker: worker.resume())

    async def flush(self) -> None:
        """See `Engine.flush`: what is cached is never looked at again, and freed where nothing runs."""
        self._cache = uuid4().hex
        if not self._flights:
            await self._all(lambda worker: worker.flush())

    async def sleep(self) -> None:
        """Have the servers release weights and cache; running requests are computed anew after `wake`.

        The weights are gone: an update has to come before `wake`.
        """
        await self.pause("retract")
        await self._fleet.hold_starts()
        await self._release(*MEMORY)

    async def wake(self) -> None:
        """Have the servers take back what `sleep` released and no update has; then they go on."""
        await self._occupy(*MEMORY)
        self._fleet.allow_starts()
        await self.resume()

    @asynccontextmanager
    async def without_cache(self) -> AsyncIterator[None]:
        """Have caches, and what is in them, given up for a while, in which nothing is generated."""
        # A server that has just answered may still compute a token more, unless it is held.
        await self.pause("retract")
        await self._release("kv_cache")
        try:
            yield
        finally:
            await self._occupy("kv_cache")
            await self.resume()

    async def health(self) -> Health:
        """All workers together. Raises RlcoreError if none is left."""
        found = await self._all(lambda worker: worker.health())
        running, queued = sum(one.running for one in found), sum(one.queued for one in found)
        version = min((one.version for one in found), default=self._version)
        return Health(not self.needs_weights, version, running, queued, self._torn)

    async def close(self) -> None:
        """End every request as aborted, and the servers that were launched for it; others stay as they are."""
        await self._cut(self._flights.values())
        await self._fleet.close()
        if self._router:
            await self._router.close()

    def _check(self, request: Request) -> None:
        place = f"request {request.id}"
        if self._torn:
            raise fail(place, self._torn, "update the weights again")
        if request.id in self._flights:
            raise fail(place, "a request of this id is running", "give every request its own id")
        if not request.prompt_tokens:
            raise fail(place, "the prompt is empty")
        # Such a token ends a server.
        if (largest := max(*request.prompt_tokens, *request.tokens, 0)) >= self._vocab_size:
            raise fail(place, f"token {largest} is outside the vocabulary of {self._vocab_size}")

    def _choose(self, request: Request) -> Client:
        """The worker that has the group's prompt, unless it is full; else the one with the most room."""
        self._fleet.check()
        if not self.workers:
            raise ServerLost("the servers that come back have no weights yet")
        loads = Counter(flight.worker for flight in self._flights.values())
        fill = {worker: loads[worker] / worker.info.capacity for worker in self.workers}
        group = (flight for flight in self._flights.values() if flight.request.key[0] == request.key[0])
        home = next(group, None)
        if home and fill.get(home.worker, 1) < 1:
            return home.worker
        return min(self.workers, key=fill.__getitem__)

    def _choose_copy(self, request: Request, worker: Client) -> int | None:
        """The copy of attention that has the group, else the one with the least to do.

        Copies draw from equal random states: responses to one prompt that are spread over them may be the same.
        """
        copies = min(one.info.copies for one in self.workers)
        if copies == 1 or self._is_split:
            return None
        here = [flight for flight in self._flights.values() if flight.worker is worker]
        loads = Counter(flight.copy for flight in here)
        home = (flight.copy for flight in here if flight.request.key[0] == request.key[0])
        return next(home, min(range(copies), key=loads.__getitem__))

    async def _fly(self, flight: Flight) -> None:
        """Read an answer to its end into the flight's inbox."""
        request, gate = flight.request, flight.gate
        try:
            async for answer in gate.generate(request, rid=flight.rid, cache=self._cache, copy=flight.copy):
                flight.answer = answer
                if request.stream or answer.finish:
                    flight.deliver()
        except RlcoreError as error:
            flight.inbox.put_nowait(error)
        except ServerLost as error:
            # What has come is kept: whoever asks again goes on after it.
            flight.deliver()
            flight.inbox.put_nowait(error)
            if flight.gate is self._router:
                self._is_routed = self._is_split
                self._fleet.suspect_router()
            self._fleet.suspect(flight.worker)
        finally:
            self._flights.pop(request.id, None)

    def _lose(self, lost: Client, why: str) -> None:
        """Have the requests of a lost server, or router, asked again elsewhere; each keeps what has come.

        Where a router has put which request, nobody knows: all that are through it are asked again.
        """
        self._is_routed = self._is_split
        for flight in list(self._flights.values()):
            if flight.gate in (lost, self._router) and flight.task and not flight.task.done():
                flight.task.cancel()
                flight.deliver()
                flight.inbox.put_nowait(ServerLost(why))

    async def _cut(self, flights: Iterable[Flight]) -> None:
        """End these on this side, each with what has come; the server notices that nobody listens."""
        open_flights = [(flight, flight.task) for flight in flights if flight.task and not flight.task.done()]
        for flight, task in open_flights:
            task.cancel()
            flight.answer.finish = "abort"
            flight.deliver()
        if open_flights:
            await asyncio.wait([task for _, task in open_flights])

    async def _release(self, *kinds: str) -> None:
        async def release(worker: Client) -> None:
            await worker.release_memory(kinds)
            self._released.setdefault(worker, set()).update(kinds)

        await self._fleet.each(release, joining=True)

    async def _occupy(self, *kinds: str) -> None:
        """Have each server take back what it has given up; one that has started since has given up nothing."""

        async def occupy(worker: Client) -> None:
            released = self._released.get(worker, set())
            if back := sorted(released.intersection(kinds)):
                await worker.occupy_memory(back)
                released.difference_update(back)

        await self._fleet.each(occupy, joining=True)

    async def _all(self, call: Callable[[Client], Coroutine[Any, Any, T]]) -> list[T]:
        return await self._fleet.each(call)


async def open_engine(
    urls: Sequence[str],
    updates: Updates,
    *,
    vocab_size: int,
    router: str | None = None,
    is_split: bool = False,
    processes: Mapping[str, Server] | None = None,
    lost_after: float = 60.0,
) -> SGLangEngine:
    """An engine on servers that run already, watched until it is closed.

    See `Fleet` for `processes`, `SGLangEngine` for `is_split`.

    Raises ServerLost for one that does not answer.
    """
    workers = [Client(url) for url in urls]
    await asyncio.gather(*(worker.describe() for worker in workers))
    gate = Client(router) if router else None
    if gate:
        gate.info = workers[0].info
    fleet = Fleet(workers, processes, lost_after, gate)
    fleet.start_watching()
    return SGLangEngine(fleet, updates, vocab_size=vocab_size, router=gate, is_split=is_split)


def _capabilities(infos: Sequence[ServerInfo]) -> frozenset[str]:
    found = {"stop_strings", "pause_in_place"}
    if all(info.seeded for info in infos):
        found.add("seeded")
    if all(info.releases_memory for info in infos):
        found.add("sleep")
    return frozenset(found)


def _finished(request: Request) -> FinishReason | None:
    """Why the tokens that a request brings along leave nothing to make."""
    if request.tokens and request.tokens[-1] in request.params.stop_token_ids:
        return "stop"
    return "length" if len(request.tokens) >= request.params.max_new_tokens else None
