"""The sender's end of a process group with servers. It starts broadcasts and never waits inside one.

Who receives says over HTTP whether it did; if a server refuses, the sender leaves, which ends the wait of the
others.
"""

from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

from rlcore.errors import fail
from rlcore.sync.parcel import Meeting

# Servers are asked to join at the same time.
JOIN_SECONDS = 120.0
# Longer than any bundle takes; a server that stands still is found out earlier, by its silence.
SEND_SECONDS = 300.0


class Broadcaster:
    """Rank 0 of a meeting. Raises RlcoreError if not everyone comes in time."""

    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting
        self._work: dist.Work | None = None
        try:
            self._group = _join(meeting)
        except (RuntimeError, ValueError) as error:
            where = f"{meeting.host}:{meeting.port}"
            message = (
                f"not all of {meeting.size - 1} server ranks came to {where}: {str(error).splitlines()[0]}"
            )
            raise fail(
                "weight sync by broadcast", message, "look into logs/, or sync: {transport: disk}"
            ) from None

    def send(self, flat: Tensor) -> None:
        """Start to send bytes to all others; the last ones have arrived, or never will."""
        self._work = self._group.broadcast(flat, 0)

    @property
    def is_over(self) -> bool:
        """Whether nothing is on its way. Until then this object must live: to free it is to wait for that."""
        return self._work is None or self._work.is_completed()

    def leave(self) -> None:
        """End the group on this side. What is on its way ends when a receiver ends the group, too."""
        with suppress(RuntimeError):
            self._group.abort()
        dist.destroy_process_group(self._group)


def open_store(host: str, size: int) -> dist.TCPStore:
    """A store where a meeting's members find one another. Closing it ends the wait of those that came."""
    return dist.TCPStore(host, 0, size, is_master=True, wait_for_workers=False, timeout=_JOIN)


_JOIN = timedelta(seconds=JOIN_SECONDS)


def _join(meeting: Meeting) -> dist.ProcessGroup:
    """As servers do: the names under which members look for one another have to be the same."""
    store = dist.TCPStore(
        meeting.host, meeting.port, meeting.size, is_master=False, wait_for_workers=False, timeout=_JOIN
    )
    named = dist.PrefixStore(meeting.name, store)
    group: dist.ProcessGroup
    group, _ = dist.distributed_c10d._new_process_group_helper(
        meeting.size,
        0,
        [],
        dist.Backend(meeting.backend),
        named,
        group_name=meeting.name,
        timeout=_JOIN,
    )
    # Known to those functions of torch that end a group.
    dist.distributed_c10d._world.pg_group_ranks[group] = {rank: rank for rank in range(meeting.size)}
    group.set_timeout(timedelta(seconds=SEND_SECONDS))
    return group
