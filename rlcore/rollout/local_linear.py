"""Linear layers on a CPU: large ones keep weights in the kernel's layout, short steps one thread.

With few rows, a decoding step spends most of its time bringing large weights into the kernel's layout;
doing that once per weight update makes such layers two to three times as fast. The products of a small model
with few tokens are over before a second thread has begun, and handing work to it costs more than it saves.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# Below this many elements the call costs more than the layout saves.
LEAST_ELEMENTS = 2**18
# From this many tokens on, a step of a small model is faster with all threads.
LEAST_TOKENS = 64


class PackedLinear(nn.Linear):
    """An `nn.Linear` that computes with a packed copy of its weight; `pack` renews it after every change."""

    packed: torch.Tensor

    @torch.no_grad()
    def pack(self) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")


def pack_linears(model: nn.Module) -> list[PackedLinear]:
    """Turn the large fp32 linear layers of a CPU model into packed ones, in place."""
    if not torch.backends.mkldnn.is_available():
        return []
    layers = [module for module in model.modules() if type(module) is nn.Linear and _gains(module.weight)]
    for layer in layers:
        layer.__class__ = PackedLinear
        layer.pack()
    return layers


def has_small_linears(model: nn.Module) -> bool:
    """Whether every linear layer of the model has too few elements to gain from packing."""
    layers = (module for module in model.modules() if isinstance(module, nn.Linear))
    return all(layer.weight.numel() < LEAST_ELEMENTS for layer in layers)


@contextmanager
def fitting_threads(tokens: int, small: bool) -> Iterator[None]:
    """Compute with one thread inside if a `small` model goes through few tokens; the setting comes back."""
    threads = torch.get_num_threads()
    if not small or tokens >= LEAST_TOKENS or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _gains(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= LEAST_ELEMENTS
