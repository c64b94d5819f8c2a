"""A weight update of the local engine: tensors by hub name, staged until all are there, then copied in.

Where transformers stores the experts of a layer as one stacked tensor, hub names address slices of it.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from rlcore.errors import fail

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STACKED = re.compile(r"(?P<experts>.*\.experts)\.(?P<kind>gate_up_proj|down_proj)$")


def hub_tensors(model: "PreTrainedModel") -> dict[str, torch.Tensor]:
    """Every weight of the model by its name in a hub checkpoint; the tensors share the model's memory."""
    return dict(named for item in model.state_dict().items() for named in unstacked(*item))


def unstacked(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Give a tensor of a transformers model by its hub name, or by names the views that the hub keeps apart."""
    match = STACKED.match(name)
    if match is None:
        yield name, tensor
        return
    for index, expert in enumerate(tensor):
        place = f"{match['experts']}.{index}"
        if match["kind"] == "down_proj":
            yield f"{place}.down_proj.weight", expert
        else:
            gate, up = expert.chunk(2)
            yield f"{place}.gate_proj.weight", gate
            yield f"{place}.up_proj.weight", up


class StagedUpdate:
    """Copies of the tensors sent so far. The model is untouched until `commit`.

    `left_out` names what the checkpoint has and transformers does not run, such as layers that draft tokens.
    """

    packing = None

    def __init__(self, targets: Mapping[str, torch.Tensor], left_out: Collection[str] = ()) -> None:
        self._targets = targets
        self._left_out = left_out
        self._staged: dict[str, torch.Tensor] = {}

    async def send(self, bucket: Mapping[str, torch.Tensor]) -> None:
        """Stage some tensors by hub name. Raises RlcoreError for a name or shape that the model lacks."""
        for name, tensor in bucket.items():
            target = self._targets.get(name)
            if target is None and name in self._left_out:
                continue
            if target is None:
                raise fail(
                    f"weight update, {name}", "the model has no such weight", "send names of the hub checkpoint"
                )
            if tensor.shape != target.shape:
                shapes = f"shape {tuple(tensor.shape)}, the model's is {tuple(target.shape)}"
                raise fail(f"weight update, {name}", shapes, "send whole, unsharded tensors")
            self._staged[name] = tensor.detach().to(target.device, target.dtype, copy=True)

    @torch.no_grad()
    def commit(self) -> None:
        """Overwrite the model's weights in place."""
        for name, tensor in self._staged.items():
            self._targets[name].copy_(tensor)
