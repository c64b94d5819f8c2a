"""The tensors that a model holds on this rank, by the names they would have in the whole, unsplit model."""

import re
from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlcore.bridge.transforms import Shard

_LAYER = re.compile(r"(?<=^decoder\.layers\.)\d+")
_EXPERT = re.compile(r"(?<=\.weight)\d+$")


def megatron_tensors(chunks: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Parameters and saved floating-point buffers of the stages; layers and experts count over the whole model.

    `chunks` are GPTModels, without wrappers. The tensors are the model's own, not copies.
    """
    tensors: dict[str, Tensor] = {}
    for chunk in chunks:
        first_layer = chunk.decoder.layers[0].layer_number - 1 if len(chunk.decoder.layers) else 0
        for name, tensor in _own_tensors(chunk).items():
            name = _LAYER.sub(partial(_count_from, first_layer), name)
            tensors[_EXPERT.sub(partial(_count_from, _first_expert(chunk)), name)] = tensor
    return tensors


def tensor_shard(chunk: nn.Module, name: str) -> Shard:
    """Which tensor-parallel rank holds this part of a tensor, among how many; experts have their own."""
    groups = chunk.pg_collection
    group = groups.expt_tp if ".experts." in name else groups.tp
    return Shard(group.rank(), group.size())


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
    if chunk.share_embeddings_and_output_weights and "output_layer.weight" in saved:
        # The last of several pipeline stages has a copy of the first one's table.
        saved["embedding.word_embeddings.weight"] = saved.pop("output_layer.weight")
    return {
        name: tensor
        for name, tensor in saved.items()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    }


def _first_expert(chunk: nn.Module) -> int:
    group = chunk.pg_collection.ep
    return group.rank() * ((chunk.config.num_moe_experts or 0) // group.size())


def _count_from(first: int, number: re.Match[str]) -> str:
    return str(int(number[0]) + first)
