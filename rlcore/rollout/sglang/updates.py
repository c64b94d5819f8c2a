"""Weight updates of SGLang servers: what is said to them over HTTP while weights come another way.

Servers load between `begin` and `end`; all of them do, or the update fails. How bundles are packed is
`rlcore.sync`'s; when servers are paused for it is the engine's.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from rlcore.errors import RlcoreError
from rlcore.rollout.sglang.client import Client, load_seconds
from rlcore.rollout.sglang.engine import Updates
from rlcore.sync.outbox import Outbox
from rlcore.sync.parcel import Packing, Parcel

if TYPE_CHECKING:
    from torch import Tensor


class Transport(Protocol):
    """One way of weights to servers; kept for a whole run.

    `partial` says that servers have a part of the new weights after a delivery, before the commit.
    """

    partial: bool

    async def prepare(self, workers: Sequence[Client], version: int) -> Packing:
        """Ask the servers whether they are ready, before anything is on its way."""
        ...

    async def deliver(self, workers: Sequence[Client], parcel: Parcel) -> None:
        """Have all of them load a bundle. Raises as soon as one refuses."""
        ...

    async def commit(self, workers: Sequence[Client]) -> None:
        """All bundles are delivered."""
        ...

    async def give_up(self, workers: Sequence[Client]) -> None:
        """Leave servers in a state in which the next update can begin, as far as they answer.

        Raises RlcoreError where it knows better why the update has failed.
        """
        ...


class ServerUpdate:
    """An open update: takes tensors, or parcels that the trainer has packed as `packing` says."""

    def __init__(
        self, workers: Sequence[Client], transport: Transport, packing: Packing, outbox: Outbox
    ) -> None:
        """`outbox` packs tensors."""
        self.packing = packing
        self.torn = False
        self._workers = workers
        self._transport = transport
        self._outbox = outbox
        self._is_open = False

    async def send(self, bucket: "Mapping[str, Tensor] | Parcel") -> None:
        """Returns when every server has the bundle. Raises RlcoreError or ServerLost if one has not."""
        parcel = bucket if isinstance(bucket, Parcel) else await asyncio.to_thread(self._pack, bucket)
        if parcel.names:
            self.torn = self._transport.partial
            await self._transport.deliver(self._workers, parcel)

    def _pack(self, bucket: "Mapping[str, Tensor]") -> Parcel:
        if not self._is_open:
            self._outbox.open(self.packing, 0)
            self._is_open = True
        return self._outbox.pack(bucket)


def served_updates(transport: Transport) -> Updates:
    """Updates by a transport, as the engine wants them."""
    # For tensors of this process; a trainer has its own.
    outbox = Outbox(torch.device("cpu"))

    @asynccontextmanager
    async def update(workers: Sequence[Client], version: int) -> AsyncIterator[ServerUpdate]:
        packing = await transport.prepare(workers, version)
        opened = ServerUpdate(workers, transport, packing, outbox)
        try:
            yield opened
            opened.torn = True
            await transport.commit(workers)
            opened.torn = False
        except BaseException:
            outbox.leave()
            await transport.give_up(workers)
            raise

    return update


class Session:
    """Opens and closes what SGLang calls a weight-update session, on all servers."""

    async def begin(self, workers: Sequence[Client]) -> None:
        await asyncio.gather(*(_begin(worker) for worker in workers))

    async def end(self, workers: Sequence[Client]) -> None:
        await asyncio.gather(*(worker.end_update() for worker in workers))

    async def try_to_end(self, workers: Sequence[Client]) -> None:
        await asyncio.gather(*(worker.end_update() for worker in workers), return_exceptions=True)


async def _begin(worker: Client) -> None:
    try:
        await worker.begin_update()
    except RlcoreError:
        # Whoever updated it last may have been killed meanwhile.
        await worker.end_update()
        await worker.begin_update()


class TensorTransport(Session):
    """Through memory that servers on this machine open: shared on a CPU, a GPU's own by CUDA IPC."""

    partial = True

    def __init__(self, **packing: Any) -> None:
        """`packing` are fields of every update's Packing."""
        self._packing = packing

    async def prepare(self, workers: Sequence[Client], version: int) -> Packing:
        await self.begin(workers)
        return Packing("tensor", version, copies=sum(map(ranks, workers)), **self._packing)

    async def deliver(self, workers: Sequence[Client], parcel: Parcel) -> None:
        handles = iter(parcel.handles)
        bodies = [{"serialized_named_tensors": own, **_FLAT} for own in _shares(handles, workers)]
        await post_all(workers, "/update_weights_from_tensor", bodies, load_seconds(parcel.nbytes))

    async def commit(self, workers: Sequence[Client]) -> None:
        await self.end(workers)

    async def give_up(self, workers: Sequence[Client]) -> None:
        await self.try_to_end(workers)


def _shares(handles: Iterator[str], workers: Sequence[Client]) -> list[list[str]]:
    return [[next(handles) for _ in range(ranks(worker))] for worker in workers]


# Never a flush: it fails while requests are held, and requests share no prefix with older weights.
_FLAT = {"load_format": "flattened_bucket", "flush_cache": False}


def ranks(worker: Client) -> int:
    """Processes of a server that load weights."""
    return int(worker.info.arguments.get("tp_size") or 1)


async def post_all(
    workers: Sequence[Client], route: str, bodies: Sequence[Mapping[str, Any]], seconds: float
) -> None:
    """Post to each its own body; the first that fails ends the wait for the others, and is raised."""
    calls = [
        asyncio.ensure_future(worker.post(route, body, timeout=seconds))
        for worker, body in zip(workers, bodies, strict=True)
    ]
    try:
        await asyncio.gather(*calls)
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
