"""Weights to servers by way of a folder that all of them can read, loaded at once at the end.

Nothing reaches a server before everything is written, so that what fails earlier changes nothing.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlcore.rollout.sglang.client import Client, load_seconds
from rlcore.rollout.sglang.engine import Updates
from rlcore.rollout.sglang.updates import post_all, served_updates
from rlcore.sync.parcel import Packing, Parcel


class DiskTransport:
    """With `delta`, servers that have the last version are given what has changed since, others everything."""

    partial = False

    def __init__(self, folder: Path, checkpoint: Path, *, delta: bool = False, **packing: Any) -> None:
        """`folder` is made anew for each update, with the configuration of `checkpoint` in it.

        `packing` are fields of every update's Packing.
        """
        self._folder = folder
        self._checkpoint = checkpoint
        self._packing = packing
        self._delta = delta
        self._holders: Sequence[Client] = ()
        self._held: int | None = None

    async def prepare(self, workers: Sequence[Client], version: int) -> Packing:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        for file in self._checkpoint.glob("*.json"):
            if not file.name.endswith(".index.json"):
                shutil.copy(file, self._folder)
        since = self._held if all(worker in self._holders for worker in workers) else None
        # Until the update succeeds, nobody knows what servers have.
        self._holders, self._held, self._version = (), None, version
        return Packing("disk", version, folder=self._folder, digests=self._delta, since=since, **self._packing)

    async def deliver(self, workers: Sequence[Client], parcel: Parcel) -> None:
        """Written it is already, and servers load all at once."""

    async def commit(self, workers: Sequence[Client]) -> None:
        if files := list(self._folder.glob("*.safetensors")):
            body = {"model_path": str(self._folder), "flush_cache": False}
            seconds = load_seconds(sum(file.stat().st_size for file in files))
            await post_all(workers, "/update_weights_from_disk", [body] * len(workers), seconds)
        shutil.rmtree(self._folder)
        self._holders, self._held = list(workers), self._version

    async def give_up(self, workers: Sequence[Client]) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def disk_updates(folder: Path, checkpoint: Path) -> Updates:
    """Updates by way of a folder; see `DiskTransport`."""
    return served_updates(DiskTransport(folder, checkpoint))
