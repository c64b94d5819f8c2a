"""What the sides of a sync tell one another: how servers want weights, and what each bundle holds.

Plain data, because the trainer and those who talk to servers may be different processes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from rlcore.bridge.fp8 import Fp8Format

Way = Literal["tensor", "broadcast", "disk"]


@dataclass(frozen=True)
class Meeting:
    """A process group of the sender, rank 0, and the ranks of all servers; its store is at an address."""

    name: str
    host: str
    port: int
    size: int
    backend: Literal["gloo", "nccl"]


@dataclass(frozen=True)
class Packing:
    """How servers want weights of `version`.

    `copies` is the number of server ranks that open each bundle's shared memory. `folder`, for the disk, is one
    that servers can read. Unless `since` is None, modules are left out that are as they were in the weights of
    that version; `digests` has the sender remember how this version's are. `fp8` is the servers' format.
    """

    way: Way
    version: int
    copies: int = 0
    meeting: Meeting | None = None
    folder: Path | None = None
    digests: bool = False
    since: int | None = None
    fp8: Fp8Format | None = None


@dataclass(frozen=True)
class Parcel:
    """A bundle of tensors, by hub name, that is on its way or ready to be fetched.

    Tensors lie end to end, those of wider types first. `handles` open it, one for each of the packing's copies.
    """

    names: Sequence[str]
    dtypes: Sequence[str]
    shapes: Sequence[Sequence[int]]
    nbytes: int
    handles: Sequence[str] = ()

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, Tensor]], handles: Sequence[str] = ()) -> "Parcel":
        """The parcel of these tensors, in this order."""
        named = list(tensors)
        dtypes = [str(tensor.dtype).removeprefix("torch.") for _, tensor in named]
        shapes = [tuple(tensor.shape) for _, tensor in named]
        nbytes = sum(tensor.nbytes for _, tensor in named)
        return cls([name for name, _ in named], dtypes, shapes, nbytes, handles)
