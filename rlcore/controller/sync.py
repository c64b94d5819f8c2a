"""Carries the trainer's weights to an engine, in hub names and bounded bundles.

While an engine loads one bundle, the trainer makes the next.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rlcore.controller.pipeline import beside_the_loop
from rlcore.controller.policy import Policy
from rlcore.errors import fail
from rlcore.rollout.engine import Engine, LostError, WeightUpdate

if TYPE_CHECKING:
    import torch

    from rlcore.sync.parcel import Parcel

MIB = 2**20
GB = 1e9
# A server that is lost on the way takes the update down with it; those that are left get it again.
ATTEMPTS = 3


@dataclass(frozen=True)
class SyncReport:
    """How many bytes every engine was given, and the seconds until all had them."""

    nbytes: int
    seconds: float

    @property
    def metrics(self) -> dict[str, float]:
        """`sync/*` metrics of a step; a GB is 10**9 bytes."""
        speed = self.nbytes / GB / self.seconds
        return {"sync/bytes": float(self.nbytes), "sync/seconds": self.seconds, "sync/gb_per_second": speed}


async def sync_weights(engine: Engine, policy: Policy, version: int, bucket_mib: int) -> SyncReport:
    """Give the engine the policy's weights under a version number; `bucket_mib` bounds what is under way.

    Raises RlcoreError where the engine refuses them, and where they are lost again and again.
    """
    for _ in range(ATTEMPTS):
        started = time.perf_counter()
        try:
            async with engine.weight_update(version) as update:
                nbytes = await send_all(policy, update, bucket_mib * MIB)
            return SyncReport(nbytes, time.perf_counter() - started)
        except LostError as error:
            lost = error
    raise fail(f"sync of weights {version}", str(lost), "look into logs/ of the run, then resume it")


async def send_all(policy: Policy, update: WeightUpdate, most_bytes: int) -> int:
    """Send an update all bundles, of which two are under way at a time; returns their bytes."""
    sent = 0
    loading: asyncio.Future[None] | None = None
    # Closed early, those who wait for the next are let go.
    with closing(policy.weights(most_bytes // 2, update.packing)) as bundles:
        try:
            while bundle := await beside_the_loop(partial(next, bundles, None)):
                if loading:
                    await loading
                loading = asyncio.ensure_future(update.send(bundle))
                sent += _nbytes(bundle)
            if loading:
                await loading
        except BaseException:
            if loading:
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
            raise
    return sent


def _nbytes(bundle: "Mapping[str, torch.Tensor] | Parcel") -> int:
    if isinstance(bundle, Mapping):
        return sum(tensor.nbytes for tensor in bundle.values())
    return bundle.nbytes
