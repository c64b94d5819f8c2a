"""Freed memory stays with a process that computes on CPUs, so that no step fetches the same pages anew.

glibc gives memory back as soon as 64 MiB lie free on top, which every backward pass brings about; the next step
then has the kernel map and clear each page again.
"""

import ctypes

MOST = 2**30

# Parameters of mallopt, from malloc.h. The first one alone would have every tensor mapped by itself.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 2**25


def keep_freed_memory() -> None:
    """Keep up to `MOST` bytes of freed memory; does nothing without glibc."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, MOST)
