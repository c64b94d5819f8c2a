"""Carries the trainer's weights to an engine, in hub names and bounded bundles.

While an engine loads one bundle, the trainer makes the next.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from rlcore.controller.pipeline import beside_the_loop
from rlcore.controller.policy import Policy
from rlcore.errors import fail
from rlcore.rollout.engine import Engine, LostError, WeightUpdate

if TYPE_CHECKING:
    import torch

    from rlcore.sync.parcel import Parcel

    Bundle = Mapping[str, torch.Tensor] | Parcel

T = TypeVar("T")

MIB = 2**20
GB = 1e9
ATTEMPTS = 3


@dataclass(kw_only=True)
class Sent:
    """What an engine was given: bytes, the seconds that it took the trainer to make them ready, and the engine
    to load them. The two go on at the same time."""

    nbytes: int = 0
    pack_seconds: float = 0.0
    load_seconds: float = 0.0


@dataclass(kw_only=True)
class SyncReport(Sent):
    """What every engine was given, and the seconds until all had it."""

    seconds: float

    @property
    def metrics(self) -> dict[str, float]:
        """`sync/*` metrics of a step; a GB is 10**9 bytes."""
        return {
            "sync/bytes": float(self.nbytes),
            "sync/seconds": self.seconds,
            "sync/pack_seconds": self.pack_seconds,
            "sync/load_seconds": self.load_seconds,
            "sync/gb_per_second": self.nbytes / GB / self.seconds,
        }


async def sync_weights(engine: Engine, policy: Policy, version: int, bucket_mib: int) -> SyncReport:
    """Give the engine the policy's weights under a version number; `bucket_mib` bounds what is under way.

    Raises RlcoreError where the engine refuses them, LostError where a server is lost on the way.
    """
    started = time.perf_counter()
    async with engine.weight_update(version) as update:
        sent = await send_all(policy, update, bucket_mib * MIB)
        delivered = time.perf_counter()
    ended = time.perf_counter()
    sent.load_seconds += ended - delivered
    return SyncReport(**asdict(sent), seconds=ended - started)


async def with_those_left(attempt: Callable[[], Awaitable[T]], what: str) -> T:
    """Do what a server that is lost on the way takes down with it; those that are left do it again.

    Raises RlcoreError where they are lost again and again.
    """
    for _ in range(ATTEMPTS):
        try:
            return await attempt()
        except LostError as error:
            lost = error
    raise fail(what, str(lost), "look into logs/ of the run, then resume it")


async def send_all(policy: Policy, update: WeightUpdate, most_bytes: int) -> Sent:
    """Send an update all bundles, of which two are under way at a time."""
    sent = Sent()
    loading: asyncio.Future[float] | None = None
    # Closed early, those who wait for the next are let go.
    with closing(policy.weights(most_bytes // 2, update.packing)) as bundles:
        try:
            while bundle := await _packed(bundles, sent):
                if loading:
                    sent.load_seconds += await loading
                loading = asyncio.ensure_future(_load(update, bundle))
                sent.nbytes += _nbytes(bundle)
            if loading:
                sent.load_seconds += await loading
        except BaseException:
            if loading:
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
            raise
    return sent


async def _packed(bundles: "Iterator[Bundle]", sent: Sent) -> "Bundle | None":
    """The next bundle, if there is one."""
    started = time.perf_counter()
    # With more it would have an OpenMP pool of its own. Pools that have more threads than there are cores sleep
    # between two products, and a second thread gains training and decoding nothing.
    bundle: Bundle | None = await beside_the_loop(partial(next, bundles, None), threads=1)
    sent.pack_seconds += time.perf_counter() - started
    return bundle


async def _load(update: WeightUpdate, bundle: "Bundle") -> float:
    """Have an engine load a bundle; returns the seconds that it takes."""
    started = time.perf_counter()
    await update.send(bundle)
    return time.perf_counter() - started


def _nbytes(bundle: "Bundle") -> int:
    if isinstance(bundle, Mapping):
        return sum(tensor.nbytes for tensor in bundle.values())
    return bundle.nbytes
