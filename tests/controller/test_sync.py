"""A sync says what it took the trainer to make weights ready, and the engine to load them."""

import asyncio
import time
from contextlib import asynccontextmanager

import torch

from rlcore.controller.sync import sync_weights

PACK, LOAD = 0.2, 0.02
BUNDLES = 2


class Policy:
    """Takes its time for each bundle of 40 bytes."""

    def weights(self, most_bytes, packing):
        for _ in range(BUNDLES):
            time.sleep(PACK)
            yield {"a.weight": torch.zeros(10)}


class Engine:
    """Takes its time for each bundle, and to make an end."""

    packing = None

    @asynccontextmanager
    async def weight_update(self, version):
        yield self
        await asyncio.sleep(LOAD)

    async def send(self, bucket):
        await asyncio.sleep(LOAD)


def test_the_engines_time_to_load_is_told_from_the_trainers_to_pack():
    metrics = asyncio.run(sync_weights(Engine(), Policy(), 1, bucket_mib=1)).metrics
    assert metrics["sync/bytes"] == BUNDLES * 40
    assert metrics["sync/pack_seconds"] >= BUNDLES * PACK
    assert (BUNDLES + 1) * LOAD <= metrics["sync/load_seconds"] < metrics["sync/pack_seconds"]
    assert metrics["sync/seconds"] >= BUNDLES * PACK + 2 * LOAD
