"""Linear layers on a CPU: large ones keep their weights in the kernel's layout.

With few rows, a decoding step spends most of its time bringing large weights into the kernel's layout;
doing that once per weight update makes such layers two to three times as fast.
"""

import torch
from torch import nn

# Below this many elements the call costs more than the layout saves.
LEAST_ELEMENTS = 2**18


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


def _gains(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= LEAST_ELEMENTS
