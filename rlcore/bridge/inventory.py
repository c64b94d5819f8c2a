"""The tensors of a model, on this rank and on all, by the names they would have in the whole, unsplit model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from rlcore.bridge.transforms import Shape, Shard
from rlcore.ranks import from_all_ranks

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


@dataclass(frozen=True)
class Held:
    """A tensor that is spread over ranks: each part's shape and type, and the rank of the world that has it.

    Of equal copies, only the lowest rank's is named.
    """

    shape: Shape
    dtype: torch.dtype
    ranks: tuple[int, ...]


def whole_model(chunks: Sequence[nn.Module]) -> dict[str, Held]:
    """Every tensor of the whole model. All ranks must ask, and are told the same."""
    own = {
        name: (tensor_shard(chunks[0], name).rank, tuple(tensor.shape), tensor.dtype)
        for name, tensor in megatron_tensors(chunks).items()
        if _is_first_copy(chunks[0], name)
    }
    holders: dict[str, dict[int, int]] = {}
    kinds: dict[str, tuple[Shape, torch.dtype]] = {}
    for rank, theirs in enumerate(from_all_ranks(own)):
        for name, (part, shape, dtype) in theirs.items():
            holders.setdefault(name, {}).setdefault(part, rank)
            kinds[name] = (shape, dtype)
    return {
        name: Held(*kinds[name], tuple(rank for _, rank in sorted(parts.items())))
        for name, parts in holders.items()
    }


def _is_first_copy(chunk: nn.Module, name: str) -> bool:
    groups = chunk.pg_collection
    return (groups.expt_dp if ".experts." in name else groups.dp_cp).rank() == 0


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
