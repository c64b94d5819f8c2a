"""Bundles of tensors for the way to an engine, bounded, so that a large model never travels as a whole."""

from collections.abc import Iterable, Iterator

import torch


def buckets(tensors: Iterable[tuple[str, torch.Tensor]], most_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
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
