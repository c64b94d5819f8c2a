"""The memory that bundles travel in: two buffers that are kept from sync to sync, filled in turns.

One is read by servers while the other is filled. On a CPU they are shared memory, whose first use is dear: the
system has to clear every page.
"""

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from rlcore.sync.parcel import Parcel


class Slots:
    """Lays tensors end to end in a buffer. `shared` ones, in host memory, can be opened by other processes."""

    def __init__(self, device: torch.device, *, shared: bool) -> None:
        self._device = device
        self._shared = shared and device.type == "cpu"
        self._slots: list[Tensor] = []

    def fill(self, bucket: Mapping[str, Tensor], room: int) -> tuple[Parcel, Tensor]:
        """Copy a bundle into the buffer that was filled longest ago; returns what is in it, and the bytes.

        A buffer has `room` bytes; it is made anew for a bundle that needs more.
        """
        # Wider types first: each tensor then begins at a multiple of its own width.
        items = sorted(bucket.items(), key=lambda named: -named[1].element_size())
        nbytes = sum(tensor.nbytes for tensor in bucket.values())
        flat = self._next(max(room, nbytes))[:nbytes]
        start = 0
        for _, tensor in items:
            part = flat[start : (start := start + tensor.nbytes)]
            part.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach(), non_blocking=True)
        if self._device.type == "cuda":
            # Others read it on streams of their own.
            torch.cuda.current_stream(self._device).synchronize()
        return Parcel.of(items), flat

    def _next(self, nbytes: int) -> Tensor:
        slot = self._slots.pop(0) if len(self._slots) == 2 else None
        if slot is None or slot.nbytes < nbytes:
            slot = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
            if self._shared:
                with _by_file_name():
                    slot.share_memory_()
        self._slots.append(slot)
        return slot


def handle(parcel: Parcel, flat: Tensor) -> str:
    """What opens the bytes in one other process, once, in the form that servers take ("flattened bucket").

    In base64, a pickle of the buffer's address and of what is where in it.
    """
    with _by_file_name():
        pickled = ForkingPickler.dumps({"flattened_tensor": _Address(flat), "metadata": list(_places(parcel))})
    return base64.b64encode(pickled).decode("ascii")


class _Address:
    """Is unpickled as the tensor; a GPU is named by what is the same for every process."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, given = reduce_tensor(self._tensor)
        if self._tensor.is_cuda:
            gpu = str(torch.cuda.get_device_properties(self._tensor.device).uuid)
            given = (*given[:_DEVICE], gpu, *given[_DEVICE + 1 :])
        return rebuild, given


# Where `reduce_tensor` has the number of the GPU.
_DEVICE = 6


def _places(parcel: Parcel) -> Iterator[SimpleNamespace]:
    start = 0
    for name, dtype, shape in zip(parcel.names, parcel.dtypes, parcel.shapes, strict=True):
        kind = getattr(torch, dtype)
        nbytes = torch.Size(shape).numel() * kind.itemsize
        yield SimpleNamespace(
            name=name,
            dtype=kind,
            shape=torch.Size(shape),
            start_idx=start,
            end_idx=start + nbytes,
            numel=nbytes,
        )
        start += nbytes


@contextmanager
def _by_file_name() -> Iterator[None]:
    """Share memory by name: processes that are no relatives cannot be given open files."""
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        yield
    finally:
        torch.multiprocessing.set_sharing_strategy(before)
