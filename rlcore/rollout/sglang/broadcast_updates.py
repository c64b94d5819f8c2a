"""Weights to servers by a collective: the trainer's rank 0 and the ranks of all servers are one process group.

The group is made at the first sync, and again when servers come or go or an update fails.
"""

import asyncio
import socket
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import uuid4

from torch.distributed import TCPStore

from rlcore.rollout.sglang.client import Client, load_seconds
from rlcore.rollout.sglang.updates import Session, post_all, ranks
from rlcore.sync.broadcast import JOIN_SECONDS, open_store
from rlcore.sync.parcel import Meeting, Packing, Parcel

# A server that is still inside the collective answers once the sender has left.
LEAVE_SECONDS = 30.0


class BroadcastTransport(Session):
    """`backend` is gloo for servers on CPUs, nccl for those on GPUs."""

    partial = True

    def __init__(self, backend: Literal["gloo", "nccl"], **packing: Any) -> None:
        """`packing` are fields of every update's Packing."""
        self._backend: Literal["gloo", "nccl"] = backend
        self._packing = packing
        self._members: Sequence[Client] = ()
        self._meeting: Meeting | None = None
        self._store: TCPStore | None = None
        self._joining: asyncio.Future[Any] | None = None

    async def prepare(self, workers: Sequence[Client], version: int) -> Packing:
        # Refused now, nobody waits for anybody.
        await self.begin(workers)
        if self._meeting is None or list(map(id, self._members)) != list(map(id, workers)):
            await self._part()
            self._meet(workers)
        return Packing("broadcast", version, meeting=self._meeting, **self._packing)

    async def deliver(self, workers: Sequence[Client], parcel: Parcel) -> None:
        assert self._joining, "an update is prepared first"
        assert self._meeting
        await self._joining
        body = {
            "names": parcel.names,
            "dtypes": parcel.dtypes,
            "shapes": parcel.shapes,
            "group_name": self._meeting.name,
            "load_format": "flattened_bucket",
            "flush_cache": False,
        }
        route = "/update_weights_from_distributed"
        await post_all(workers, route, [body] * len(workers), load_seconds(parcel.nbytes))

    async def commit(self, workers: Sequence[Client]) -> None:
        await self.end(workers)

    async def give_up(self, workers: Sequence[Client]) -> None:
        """See `Transport.give_up`: a sender that waited in vain does not know who refused to come."""
        joining = self._joining
        await self._part()
        await self.try_to_end(workers)
        if joining and joining.done() and not joining.cancelled() and (error := joining.exception()):
            raise error

    def _meet(self, workers: Sequence[Client]) -> None:
        """Ask all servers to a new group; the sender is asked by the packing."""
        host = _own_address(workers[0].url)
        size = 1 + sum(map(ranks, workers))
        self._store = open_store(host, size)
        self._meeting = Meeting(f"rlcore-{uuid4().hex}", host, self._store.port, size, self._backend)
        self._members = list(workers)
        bodies = [
            {
                "master_address": host,
                "master_port": self._store.port,
                "rank_offset": 1 + sum(map(ranks, workers[:index])),
                "world_size": size,
                "group_name": self._meeting.name,
                "backend": self._backend,
            }
            for index in range(len(workers))
        ]
        asking = post_all(workers, "/init_weights_update_group", bodies, JOIN_SECONDS)
        joining = asyncio.ensure_future(asking)
        joining.add_done_callback(self._close_if_refused)
        self._joining = joining

    def _close_if_refused(self, joining: "asyncio.Future[Any]") -> None:
        """Without its store a meeting ends for those who wait for others."""
        if joining.cancelled() or joining.exception():
            self._store = None

    async def _part(self) -> None:
        """Dissolve the group as far as its members answer."""
        members, meeting, joining = self._members, self._meeting, self._joining
        self._members, self._meeting, self._joining, self._store = (), None, None, None
        if joining and not joining.done():
            joining.cancel()
        if meeting:
            route, body = "/destroy_weights_update_group", {"group_name": meeting.name}
            calls = [member.post(route, body, timeout=LEAVE_SECONDS) for member in members]
            await asyncio.gather(*calls, return_exceptions=True)


def _own_address(url: str) -> str:
    """The address of this machine that a server would see; no packet is sent."""
    there = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((there.hostname or "", there.port or 80))
        return str(probe.getsockname()[0])
