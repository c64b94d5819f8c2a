"""Packs samples into micro-batches under a token cap, by their lengths alone."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Split sample indices into micro-batches of at most `max_tokens` tokens each.

    Longest first, each into the fullest micro-batch that still has room (best-fit decreasing); ties go to
    the earlier sample, so that the result is a function of the lengths. A sample longer than the cap gets a
    micro-batch of its own and is never cut.
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        slot = bisect_left(rooms, (lengths[index], -1))
        if slot < len(rooms):
            free, number = rooms.pop(slot)
        else:
            free, number = max_tokens, len(bins)
            bins.append([])
        bins[number].append(index)
        insort(rooms, (free - lengths[index], number))
    return bins
