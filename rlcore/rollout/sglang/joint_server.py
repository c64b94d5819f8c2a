"""One server of which a process runs on each of several nodes: it lives while all of them do."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from rlcore.rollout.sglang.server import Server


class JointServer(Server):
    """Its processes, in the order of their nodes; the first one answers for all, and has the log."""

    def __init__(self, parts: Sequence[Server]) -> None:
        self._parts = parts
        self.url = parts[0].url

    @property
    def log(self) -> Path:
        return self._parts[0].log

    @property
    def alive(self) -> bool:
        return all(part.alive for part in self._parts)

    async def wait_started(self) -> None:
        await asyncio.gather(*(part.wait_started() for part in self._parts))

    def end(self) -> str:
        return self._culprit().end()

    def story(self) -> str:
        return self._culprit().story()

    def stop(self) -> None:
        for part in self._parts:
            part.stop()

    def again(self) -> Self:
        begun: list[Server] = []
        try:
            begun.extend(part.again() for part in self._parts)
        except BaseException:
            for part in begun:
                part.stop()
            raise
        return type(self)(begun)

    def _culprit(self) -> Server:
        """The first that has ended, else the one that answers for all."""
        return next((part for part in self._parts if not part.alive), self._parts[0])
