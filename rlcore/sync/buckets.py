"""Bundles of tensors for the way to an engine, bounded, so that a large model never travels as a whole.

A module's tensors stay together: servers fuse some of them while they load, and forget halves between bundles.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby

import torch

Named = tuple[str, torch.Tensor]


def buckets(tensors: Iterable[Named], most_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    """Group tensors, in order, into bundles of at most `most_bytes`; a larger module travels alone.

    Neighbours such as `self_attn.q_a_proj.weight` and `self_attn.kv_a_proj_with_mqa.weight` are of one module.
    """
    bucket: dict[str, torch.Tensor] = {}
    size = 0
    for _, group in groupby(tensors, key=lambda named: module(named[0])):
        together = dict(group)
        more = sum(tensor.nbytes for tensor in together.values())
        if bucket and size + more > most_bytes:
            yield bucket
            bucket, size = {}, 0
        bucket |= together
        size += more
    if bucket:
        yield bucket


def module(name: str) -> str:
    """What a tensor belongs to: `a.self_attn` for `a.self_attn.o_proj.weight`."""
    return name.rsplit(".", 2)[0]
