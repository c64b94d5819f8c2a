"""The plainest way of weights to servers: a folder that all of them can read, loaded at once at the end.

Nothing reaches a server before everything is written, so that what fails earlier changes nothing.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from rlcore.rollout.sglang.client import UPDATE_SECONDS, Client
from rlcore.rollout.sglang.engine import Updates

if TYPE_CHECKING:
    import torch


class DiskUpdate:
    """Writes each bucket to a file; `load` has servers read them."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        """`folder` is made anew, with the configuration of `checkpoint` in it."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in checkpoint.glob("*.json"):
            if not file.name.endswith(".index.json"):
                shutil.copy(file, folder)
        self.torn = False
        self._folder = folder
        self._files = 0

    async def send(self, bucket: "Mapping[str, torch.Tensor]") -> None:
        self._files += 1
        tensors = {name: tensor.contiguous() for name, tensor in bucket.items()}
        file = self._folder / f"model-{self._files:05d}.safetensors"
        await asyncio.to_thread(save_file, tensors, file, metadata={"format": "pt"})

    async def load(self, workers: Sequence[Client]) -> None:
        self.torn = True
        body = {"model_path": str(self._folder), "flush_cache": False}
        route = "/update_weights_from_disk"
        await asyncio.gather(*(worker.post(route, body, timeout=UPDATE_SECONDS) for worker in workers))
        self.torn = False


def disk_updates(folder: Path, checkpoint: Path) -> Updates:
    """A transport by way of a folder."""

    @asynccontextmanager
    async def update(workers: Sequence[Client], version: int) -> AsyncIterator[DiskUpdate]:
        opened = DiskUpdate(folder, checkpoint)
        yield opened
        await opened.load(workers)
        shutil.rmtree(folder)

    return update
