"""A sync says what it took the trainer to pack weights and the engine to load them, and it outlives servers."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
import torch

from rlcore.controller.sync import ATTEMPTS, sync_weights, with_those_left
from rlcore.errors import RlcoreError
from rlcore.rollout.engine import LostError

PACK, LOAD = 0.2, 0.02
BUNDLES = 2


class Policy:
    """Takes its time for each bundle of 40 bytes."""

    def weights(self, most_bytes, packing):
        for _ in range(BUNDLES):
            time.sleep(PACK)
            yield {"a.weight": torch.zeros(10)}


class Engine:
    """Takes its time for each bundle, and to make an end; `spent` is what a busy machine makes of it."""

    packing = None
    spent = 0.0

    @asynccontextmanager
    async def weight_update(self, version):
        yield self
        await self.send({})

    async def send(self, bucket):
        started = time.perf_counter()
        await asyncio.sleep(LOAD)
        self.spent += time.perf_counter() - started


def test_the_engines_time_to_load_is_told_from_the_trainers_to_pack():
    engine = Engine()
    metrics = asyncio.run(sync_weights(engine, Policy(), 1, bucket_mib=1)).metrics
    assert metrics["sync/bytes"] == BUNDLES * 40
    assert metrics["sync/pack_seconds"] >= BUNDLES * PACK
    assert engine.spent >= (BUNDLES + 1) * LOAD
    assert metrics["sync/load_seconds"] == pytest.approx(engine.spent, abs=PACK / 2)
    assert metrics["sync/seconds"] >= BUNDLES * PACK + 2 * LOAD


@pytest.mark.parametrize("losses", [0, ATTEMPTS - 1])
def test_what_a_lost_server_takes_down_is_done_again_by_those_that_are_left(losses):
    left = iter([LostError("server 1 is gone")] * losses)

    async def attempt():
        for error in left:
            raise error
        return "done"

    assert asyncio.run(with_those_left(attempt, "sync of weights 7")) == "done"


def test_a_sync_that_loses_servers_again_and_again_ends_in_a_plain_sentence():
    async def attempt():
        raise LostError("server 1 is gone")

    with pytest.raises(RlcoreError, match=r"sync of weights 7: server 1 is gone\n.*resume"):
        asyncio.run(with_those_left(attempt, "sync of weights 7"))
