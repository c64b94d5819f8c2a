"""Hands a rank's GPU memory to others for a while: weights and optimizer states then wait in host memory.

Memory is emptied under the tensors, which stay the same objects: whoever holds one, or a view of it, finds it
as it was. When that happens is the controller's business.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, UntypedStorage

from rlcore.errors import fail
from rlcore.trainer.trainer import Trainer

Kind = Literal["weights", "states", "gradients"]
KINDS: tuple[Kind, ...] = ("weights", "states", "gradients")

# What a call needs in memory; any other needs all of it.
NEEDS: Mapping[str, tuple[Kind, ...]] = {
    "log_probs": ("weights",),
    "reference_log_probs": ("weights",),
    "first_weights": ("weights",),
    "next_weights": ("weights",),
    "save_hf": ("weights",),
    "give_up_weights": (),
    "is_saving": (),
    "finish_saving": (),
}

# A power of two, to which the system's page-locked memory would be rounded up.
BLOCK_BYTES = 2**28


class OffloadedTrainer:
    """A trainer whose memory can be had: `release` gives it away, and each call first takes back what it needs.

    On a CPU the same happens within host memory. Gradients are not kept, they come back as zeros. What stays:
    CUDA's and NCCL's own memory, and the buffers that weights are sent from. `enter` is told what goes on.
    """

    def __init__(self, trainer: Trainer, enter: Callable[[str], None] = lambda phase: None) -> None:
        self._trainer = trainer
        self._enter = enter
        self._device = next(trainer.stages[0].parameters()).device
        self._hosts = {kind: _Host(self._device) for kind in ("weights", "states")}
        self._away: dict[Kind, list[tuple[UntypedStorage, int]]] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._trainer, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self.occupy(*NEEDS.get(name, KINDS))
            return found(*args, **kwargs)

        return call

    def release(self, *kinds: Kind) -> int:
        """Give these up, by default all; returns the bytes of all kinds that the device does not hold now."""
        for kind in kinds or KINDS:
            if kind not in self._away:
                self._enter(f"{kind} leave the device")
                self._away[kind] = self._send_away(kind)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return sum(nbytes for storages in self._away.values() for _, nbytes in storages)

    def occupy(self, *kinds: Kind) -> None:
        """Take these back, by default all. Raises RlcoreError if others still hold the memory."""
        for kind in kinds or KINDS:
            if kind in self._away:
                self._enter(f"{kind} come back to the device")
                try:
                    self._bring_back(kind)
                except torch.OutOfMemoryError as error:
                    message = f"no room for the trainer's {kind}: {str(error).splitlines()[0]}"
                    raise fail("cluster.offload_train", message, "a lower mem_fraction_static") from None

    def _send_away(self, kind: Kind) -> list[tuple[UntypedStorage, int]]:
        storages = self._storages(kind)
        if kind in self._hosts:
            for device_n, host_n in self._hosts[kind].places(storages):
                host_n.copy_(device_n, non_blocking=True)
        sizes = [(storage, storage.nbytes()) for storage in storages]
        self._settle()
        for storage in storages:
            storage.resize_(0)
        return sizes

    def _bring_back(self, kind: Kind) -> None:
        storages = [storage for storage, _ in self._away[kind]]
        for storage, nbytes in self._away[kind]:
            storage.resize_(nbytes)
        if kind in self._hosts:
            for device_n, host_n in self._hosts[kind].places(storages):
                device_n.copy_(host_n, non_blocking=True)
        else:
            for storage in storages:
                _bytes(storage).zero_()
        self._settle()
        del self._away[kind]

    def _settle(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _storages(self, kind: Kind) -> list[UntypedStorage]:
        """The distinct storages of a kind on the device; what is weights, too, counts as weights alone."""
        weights = _distinct(self._weights())
        if kind == "weights":
            found = weights
        else:
            own = self._states() if kind == "states" else self._gradients()
            found = {key: storage for key, storage in _distinct(own).items() if key not in weights}
        return [storage for storage in found.values() if storage.nbytes() and storage.device == self._device]

    def _weights(self) -> Iterator[Tensor]:
        for stage in self._trainer.stages:
            yield from stage.parameters()
            yield from stage.buffers()

    def _states(self) -> Iterator[Tensor]:
        """Master weights and moments; those of an optimizer in host memory are there already."""
        state = self._trainer.state
        for part in state.optimizer.chained_optimizers if state else ():
            if part.optimizer is not None:
                for group in part.optimizer.param_groups:
                    yield from group["params"]
                for moments in part.optimizer.state.values():
                    yield from (one for one in moments.values() if isinstance(one, Tensor))

    def _gradients(self) -> Iterator[Tensor]:
        state = self._trainer.state
        if state is None:
            return
        # Of master weights, which may be copies.
        state.optimizer.zero_grad()
        for stage in state.stages:
            for buffer in (*stage.buffers, *stage.expert_parallel_buffers):
                yield buffer.grad_data


class _Host:
    """Host memory for storages that are laid end to end, in blocks that are kept: new ones are dear."""

    def __init__(self, device: torch.device) -> None:
        self._is_locked = device.type == "cuda"
        self._blocks: list[Tensor] = []

    def places(self, storages: Iterable[UntypedStorage]) -> Iterator[tuple[Tensor, Tensor]]:
        """Each stretch of the storages' bytes with its place, both uint8 [n]."""
        place = 0
        for storage in storages:
            start, nbytes = 0, storage.nbytes()
            while start < nbytes:
                number, offset = divmod(place, BLOCK_BYTES)
                length = min(nbytes - start, BLOCK_BYTES - offset)
                yield _bytes(storage)[start : start + length], self._block(number)[offset : offset + length]
                start, place = start + length, place + length

    def _block(self, number: int) -> Tensor:
        if number == len(self._blocks):
            self._blocks.append(torch.empty(BLOCK_BYTES, dtype=torch.uint8, pin_memory=self._is_locked))
        return self._blocks[number]


def _distinct(tensors: Iterable[Tensor]) -> dict[int, UntypedStorage]:
    """Storages by what tells them apart, with or without memory."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage._cdata: storage for storage in storages}


def _bytes(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
