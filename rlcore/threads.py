"""How many CPU threads torch computes with, without what `torch.set_num_threads` costs small matrix products.

Inside torch's own loops (attention has one product for every head) MKL computes with one thread, unless it was
told a number of its own, as torch does: each product then begins and ends an OpenMP team.
"""

import ctypes
from functools import cache

import torch


def compute_with(threads: int) -> None:
    """Have the calling thread compute with so many threads; others keep their numbers."""
    torch.get_num_threads()  # a thread's first loop would set its number once more, MKL's included
    torch.set_num_threads(threads)
    if mkl := _mkl():
        mkl.MKL_Set_Num_Threads_Local(0)  # take OpenMP's number, which torch has just set
        mkl.MKL_Set_Dynamic(1)  # and one thread inside a loop of several


@cache
def _mkl() -> ctypes.CDLL | None:
    """The library through which torch reaches its MKL, or None if it has none."""
    library = ctypes.CDLL(torch._C.__file__)
    return library if hasattr(library, "MKL_Set_Dynamic") else None
