"""The trainer's side of a sync: makes of each bundle of weights what servers can fetch."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlcore.bridge.fp8 import quantized
from rlcore.errors import fail
from rlcore.sync.broadcast import Broadcaster
from rlcore.sync.buckets import module
from rlcore.sync.parcel import Packing, Parcel
from rlcore.sync.slots import Slots, handle


class Outbox:
    """Packs the weights of one sync after the other; `open` begins a sync.

    What it keeps: two buffers, the process group with the servers, and digests of the last version.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._slots: dict[str, Slots] = {}
        self._broadcaster: Broadcaster | None = None
        self._left: list[Broadcaster] = []
        self._digests: dict[str, bytes] = {}
        self._version: int | None = None
        self._files = 0

    def open(self, packing: Packing, room: int) -> None:
        """Begin a sync of bundles of about `room` bytes.

        Raises RlcoreError if servers do not come to a meeting.
        """
        self._packing, self._room, self._files = packing, room, 0
        if not packing.digests or self._version is None or self._version != packing.since:
            self._digests = {}
        self._version = packing.version if packing.digests else None
        if packing.meeting and not (self._broadcaster and self._broadcaster.meeting == packing.meeting):
            self.leave()
            self._broadcaster = Broadcaster(packing.meeting)

    def pack(self, bucket: Mapping[str, Tensor]) -> Parcel:
        """Send a bundle off, or lay it ready. Its buffer is used again after the next one's, no sooner.

        Raises RlcoreError for a folder that cannot be written.
        """
        packing = self._packing
        wanted = dict(quantized(self._changed(bucket).items(), packing.fp8))
        if packing.way == "disk":
            return self._write(wanted)
        slots = self._slots.setdefault(packing.way, Slots(self._device, shared=packing.way == "tensor"))
        parcel, flat = slots.fill(wanted, self._room)
        if packing.way == "broadcast" and self._broadcaster:
            self._broadcaster.send(flat)
            return parcel
        return replace(parcel, handles=[handle(parcel, flat) for _ in range(packing.copies)])

    def leave(self) -> None:
        """Give up the process group, and a broadcast that nobody waits for any more."""
        if self._broadcaster:
            self._broadcaster.leave()
            self._left.append(self._broadcaster)
        self._broadcaster = None
        self._left = [one for one in self._left if not one.is_over]

    def _changed(self, bucket: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The modules of which something is not as it was; servers may load a module only as a whole."""
        if not self._packing.digests:
            return bucket
        new = {name: _digest(tensor) for name, tensor in bucket.items()}
        changed = {module(name) for name in new if self._digests.get(name) != new[name]}
        self._digests |= new
        return {name: tensor for name, tensor in bucket.items() if module(name) in changed}

    def _write(self, tensors: Mapping[str, Tensor]) -> Parcel:
        """To a file of its own; nothing for no tensors."""
        folder = self._packing.folder
        assert folder is not None, "a packing for the disk names a folder"
        if tensors:
            self._files += 1
            _save(tensors, folder / f"model-{self._files:05d}.safetensors")
        return Parcel.of(tensors.items())


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    # A file takes no views into larger memory.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(own, file, metadata={"format": "pt"})
    except OSError as error:
        raise fail(str(file), f"weights for servers cannot be written: {error}", "free space") from None


def _digest(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.blake2b(flat.numpy().data, digest_size=16).digest()
