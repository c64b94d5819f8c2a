"""FP8 weights in blocks, as published checkpoints have them: e4m3 values, and one fp32 scale for each block.

Weights are `name`, scales `name` with `_scale_inv` behind it (DeepSeek-V3, arXiv 2412.19437, section 3.3).
Which weights of a model are FP8 is the checkpoint's to say.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rlcore.bridge.safetensors_io import SafetensorsFolder
from rlcore.errors import fail

SCALE = "_scale_inv"
E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
# Blocks of zeros have this scale, and not 0, by which nothing can be divided.
SMALLEST_PEAK = 1e-12


@dataclass(frozen=True)
class Fp8Format:
    """Which weights are FP8, and in blocks of how many rows and columns."""

    names: frozenset[str]
    block: tuple[int, int]
    power_of_2: bool = False


def quantize_blocks(
    weight_nk: Tensor, block: tuple[int, int], *, power_of_2: bool = False
) -> tuple[Tensor, Tensor]:
    """Return e4m3 values [n, k] and fp32 scales [⌈n / rows⌉, ⌈k / columns⌉]; weight ≈ value x scale.

    A block's scale is its largest magnitude / 448, rounded up to a power of 2 where asked.
    """
    peaks = _blocks(weight_nk, block).abs().amax(dim=(1, 3)).clamp(min=SMALLEST_PEAK)
    scales = peaks / LARGEST
    if power_of_2:
        scales = scales.log2().ceil().exp2()
    values = (weight_nk.float() / _spread(scales, block, weight_nk)).clamp(-LARGEST, LARGEST)
    return values.to(E4M3), scales


def dequantize_blocks(values_nk: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """The fp32 weight [n, k] that values and scales stand for."""
    return values_nk.float() * _spread(scales, block, values_nk)


def quantized(tensors: Iterable[tuple[str, Tensor]], fp8: Fp8Format | None) -> Iterator[tuple[str, Tensor]]:
    """The same tensors with those that the format names in FP8, each followed by its scales."""
    for name, tensor in tensors:
        if fp8 and name in fp8.names:
            values, scales = quantize_blocks(tensor, fp8.block, power_of_2=fp8.power_of_2)
            yield name, values
            yield name + SCALE, scales
        else:
            yield name, tensor


def read_fp8_format(folder: Path, hf_config: Mapping[str, Any]) -> Fp8Format | None:
    """The format of a checkpoint with this config.json, None where it is not quantized.

    Raises RlcoreError for other kinds of quantization, and for files that contradict config.json.
    """
    settings = hf_config.get("quantization_config")
    if settings is None:
        return None
    place = f"{folder}/config.json, quantization_config"
    _check(settings, place)
    with SafetensorsFolder(folder) as files:
        named = {name: files.tensors[name] for name in files.tensors}
    names = frozenset(name for name in named if named[name].dtype == "F8_E4M3" and name + SCALE in named)
    for module in settings.get("modules_to_not_convert") or ():
        if wrong := next((name for name in names if _is_of(name, module)), None):
            raise fail(place, f"modules_to_not_convert names {module}, but {wrong} is FP8", "mend config.json")
    rows, columns = settings["weight_block_size"]
    return Fp8Format(names, (rows, columns), settings.get("scale_fmt") == "ue8m0")


def _check(settings: Mapping[str, Any], place: str) -> None:
    kind = settings.get("quant_method")
    if kind != "fp8" or settings.get("fmt", "e4m3") != "e4m3" or not settings.get("weight_block_size"):
        message = f"weights of this kind (quant_method {kind!r}) cannot be made on the way to servers"
        raise fail(
            place, message, "a checkpoint with quant_method fp8, fmt e4m3 and weight_block_size [128, 128]"
        )


def _is_of(name: str, module: str) -> bool:
    return name.startswith(module + ".")


def _blocks(weight_nk: Tensor, block: tuple[int, int]) -> Tensor:
    """[n, k] as [row blocks, rows, column blocks, columns], with zeros where blocks stand over."""
    (n, k), (rows, columns) = weight_nk.shape, block
    padded = functional.pad(weight_nk.float(), (0, -k % columns, 0, -n % rows))
    return padded.view(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)


def _spread(scales: Tensor, block: tuple[int, int], like_nk: Tensor) -> Tensor:
    """Each block's scale at all of its places."""
    n, k = like_nk.shape
    return scales.repeat_interleave(block[0], 0)[:n].repeat_interleave(block[1], 1)[:, :k]
