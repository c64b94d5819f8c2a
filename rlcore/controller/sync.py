"""Carries the trainer's weights to an engine, in hub names and bounded bundles."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rlcore.rollout.engine import Engine

if TYPE_CHECKING:
    import torch

MIB = 2**20


async def sync_weights(
    engine: Engine, tensors: "Iterable[tuple[str, torch.Tensor]]", version: int, bucket_mib: int
) -> int:
    """Give the engine new weights under a version number; returns the bytes sent."""
    sent = 0
    async with engine.weight_update(version) as update:
        for bucket in buckets(tensors, bucket_mib * MIB):
            await update.send(bucket)
            sent += sum(tensor.nbytes for tensor in bucket.values())
    return sent


def buckets(
    tensors: "Iterable[tuple[str, torch.Tensor]]", most_bytes: int
) -> "Iterator[dict[str, torch.Tensor]]":
    """Group tensors, in order, into bundles of at most `most_bytes`; a larger tensor travels alone."""
    bucket: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if bucket and size + tensor.nbytes > most_bytes:
            yield bucket
            bucket, size = {}, 0
        bucket[name] = tensor
        size += tensor.nbytes
    if bucket:
        yield bucket
