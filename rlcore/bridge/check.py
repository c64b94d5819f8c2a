"""What can be wrong with a checkpoint's tensors besides their names: shapes, types, values."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from rlcore.bridge.safetensors_io import SafetensorsFolder
from rlcore.bridge.table import WeightBridge
from rlcore.bridge.transforms import Shard
from rlcore.errors import Problem

# Types by the names that safetensors gives them.
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def misfits(
    bridge: WeightBridge,
    source: SafetensorsFolder,
    own: Mapping[str, Tensor],
    shards: Mapping[str, Shard],
) -> Iterator[Problem]:
    """Tensors whose shape or type is not what the parameters `own` need, of which this rank holds `shards`.

    Both have names as in the bridge; a parameter that `shards` leaves out is whole.
    """
    for name, parameter in own.items():
        entry = bridge.by_megatron.get(name)
        if entry is None or any(hf not in source.tensors for hf in entry.hf):
            continue
        shapes = entry.transform.source_shapes(tuple(parameter.shape), shards.get(name, Shard()).size)
        for hf, shape in zip(entry.hf, shapes, strict=True):
            info = source.tensors[hf]
            if info.shape != shape:
                yield _problem(source, hf, f"has shape {list(info.shape)}, the model needs {list(shape)}")
            if info.dtype not in DTYPES:
                yield _problem(source, hf, f"has type {info.dtype}, which cannot be trained on")
            elif _is_rounded(parameter, DTYPES[info.dtype]):
                message = (
                    f"has type {info.dtype}, but decides by small differences and must be {parameter.dtype}"
                )
                yield _problem(source, hf, message, "take it from the published checkpoint")


def _is_rounded(tensor: Tensor, stored: torch.dtype) -> bool:
    """Whether a buffer, such as a bias by which routers choose, was stored in a shorter type than its own."""
    return not isinstance(tensor, nn.Parameter) and stored.itemsize < tensor.dtype.itemsize


def mtp_layers_of(bridge: WeightBridge, source: SafetensorsFolder) -> int:
    """How many MTP layers the checkpoint has, be they whole or not."""
    places = [entry.megatron for entry in bridge.entries if not source.tensors.keys().isdisjoint(entry.hf)]
    return len({name.split(".")[2] for name in places if name.startswith("mtp.layers.")})


def missing_mtp_weights(bridge: WeightBridge, source: SafetensorsFolder, layers: int) -> list[str]:
    """Tensors of the first `layers` MTP layers that the checkpoint lacks, as one saved by transformers does."""
    wanted = tuple(f"mtp.layers.{layer}." for layer in range(layers))
    return [
        name
        for entry in bridge.entries
        if entry.megatron.startswith(wanted) and not entry.optional
        for name in entry.hf
        if name not in source.tensors
    ]


def surprising_types(source: SafetensorsFolder, announced: torch.dtype) -> Iterator[Problem]:
    """Tensors of another type than config.json announces; fp32 beside a shorter type is meant to be so."""
    for name, info in source.tensors.items():
        if DTYPES.get(info.dtype) not in (announced, torch.float32):
            yield _problem(source, name, f"has type {info.dtype}, config.json says {announced}")


def not_finite(source: SafetensorsFolder, name: str) -> Iterator[Problem]:
    """One problem if the tensor holds NaN or infinite values."""
    tensor = source.tensor(name)
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        yield _problem(source, name, "holds NaN or infinite values", "take an earlier checkpoint")


def _problem(source: SafetensorsFolder, name: str, message: str, remedy: str = "") -> Problem:
    return Problem(str(source.folder / source.tensors[name].file), f"{name} {message}", remedy)
