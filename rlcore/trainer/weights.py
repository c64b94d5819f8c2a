"""Copies of a model's weights in host memory, swapped in for a while: a reference without a second model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch

from rlcore.models.forward import PolicyModel


class HostWeights:
    """A snapshot of all parameters and buffers of this rank's stages, bit for bit."""

    def __init__(self, stages: Sequence[PolicyModel]) -> None:
        self._stages = stages
        self._copies = [_copied(tensor.detach()) for tensor in self._live()]

    def _live(self) -> Iterator[torch.Tensor]:
        return chain.from_iterable(chain(stage.parameters(), stage.buffers()) for stage in self._stages)

    @torch.no_grad()
    def restore(self) -> None:
        """Write the snapshot into the model, in place."""
        for tensor, copy in zip(self._live(), self._copies, strict=True):
            tensor.copy_(copy, non_blocking=True)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the model have the snapshot's weights inside the context, and its own again after it."""
        own = HostWeights(self._stages)
        self.restore()
        try:
            yield
        finally:
            own.restore()


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in host memory, page-locked where a GPU will read it back."""
    copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return copy.copy_(tensor)
