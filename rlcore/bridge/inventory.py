"""The tensors that a model holds on this rank, by the names they would have in the whole, unsplit model."""

import re
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

_LAYER = re.compile(r"(?<=^decoder\.layers\.)\d+")


def megatron_tensors(chunks: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Parameters and saved floating-point buffers of the pipeline stages, layers counted over the whole model.

    `chunks` are GPTModels, without wrappers. The tensors are the model's own, not copies.
    """
    tensors: dict[str, Tensor] = {}
    for chunk in chunks:
        first_layer = chunk.decoder.layers[0].layer_number - 1 if len(chunk.decoder.layers) else 0
        for name, tensor in _own_tensors(chunk).items():
            tensors[_LAYER.sub(lambda i, first=first_layer: str(int(i[0]) + first), name)] = tensor
    return tensors


def all_megatron_names(chunks: Sequence[nn.Module]) -> set[str]:
    """Names of the whole model, gathered from every rank."""
    names = set(megatron_tensors(chunks))
    if dist.get_world_size() == 1:
        return names
    gathered: list[set[str]] = [set()] * dist.get_world_size()
    dist.all_gather_object(gathered, names)
    return set().union(*gathered)


def _own_tensors(chunk: nn.Module) -> dict[str, Tensor]:
    saved = chunk.state_dict(keep_vars=True)
    return {
        name: tensor
        for name, tensor in saved.items()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    }
