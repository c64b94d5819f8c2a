"""Makes an FP8 checkpoint of one in 16 or 32 bits, a file at a time, with the memory that one file takes.

A file has its name when it is whole, so that a conversion that was cut off goes on with the others. config.json
comes last: without it a folder is a checkpoint to nobody. What blocks and their scales are is fp8.py's.
"""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from rlcore.bridge.check import DTYPES
from rlcore.bridge.fp8 import SCALE, Fp8Format, dequantize_blocks, quantized, read_fp8_format
from rlcore.bridge.safetensors_io import (
    INDEX,
    WEIGHT_FILES,
    SafetensorsFolder,
    TensorInfo,
    data_bytes,
    write_file,
    write_index,
)
from rlcore.errors import Problem, fail, raise_if_any

# Stands in a target until all of it is there, and says of what and how it is made.
BEGUN = "conversion.json"
_CONFIG = "config.json"
# Matrices that published FP8 checkpoints leave as they are (modules_to_not_convert): tables, output layers,
# routers, what joins the inputs of an MTP layer, and what weighs the heads of an indexer.
_KEPT = re.compile(r"embed|norm|^(lm_head|head|gate|router|eh_proj|weights_proj)$")
# Half of the last of three bits, and half the distance of the smallest numbers, with room for fp32's rounding.
_ROUNDING, _SMALLEST = 1.001 * 2**-4, 1.001 * 2**-10


class Conversion:
    """The making of `target` from `source`, with all that headers tell checked before anything is written.

    `files` has the names of each file's tensors. Raises RlcoreError with everything that stands against it.
    """

    def __init__(
        self, source: SafetensorsFolder, target: Path, hf_config: Mapping[str, Any], block: tuple[int, int]
    ) -> None:
        self._source, self._target = source, target
        tensors = source.tensors
        self.fp8 = Fp8Format(frozenset(name for name in tensors if _is_linear(name, tensors[name])), block)
        self._config = {**hf_config, "quantization_config": _settings(source, self.fp8)}
        self._begun = {"source": str(source.folder.resolve()), "weight_block_size": list(block)}
        self.files = _by_file(source)
        raise_if_any(self._problems(hf_config))

    def left(self) -> list[str]:
        """The files that are not whole in the target yet, in order."""
        return sorted(file for file in self.files if not (self._target / file).is_file())

    def begin(self) -> None:
        with _written(self._target):
            self._target.mkdir(parents=True, exist_ok=True)
            _write_json(self._target / BEGUN, self._begun)

    def write(self, file: str) -> None:
        """Make one file. Raises RlcoreError for weights that are not finite, and if it cannot be written."""
        with SafetensorsFolder(self._source.folder, [file]) as opened:
            tensors = ((name, opened.tensor(name)) for name in self.files[file])
            made = dict(quantized(tensors, self.fp8))
        for name in made:
            if name.endswith(SCALE) and not made[name].isfinite().all():
                place = f"{self._source.folder / file}: {name.removesuffix(SCALE)}"
                raise fail(place, "holds values that are not finite", "see what rlcore verify finds of it")
        with _written(self._target / file):
            write_file(self._target / file, made)

    def finish(self) -> None:
        """Copy what is no weight, and write the index and, last, config.json."""
        source, target = self._source.folder, self._target
        with _written(target):
            ignored = shutil.ignore_patterns(*WEIGHT_FILES, _CONFIG, ".cache")
            shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
            if (source / INDEX).is_file():
                with SafetensorsFolder(target, self.files) as made:
                    weight_map = {name: info.file for name, info in made.tensors.items()}
                write_index(target, weight_map, sum(data_bytes(target / file) for file in self.files))
            _write_json(target / _CONFIG, self._config)
            (target / BEGUN).unlink()

    def _problems(self, hf_config: Mapping[str, Any]) -> Iterator[Problem]:
        source, target = self._source.folder, self._target
        types = {info.dtype for info in self._source.tensors.values()}
        if hf_config.get("quantization_config") or "F8_E4M3" in types:
            yield Problem(str(source), "is quantized already", "the checkpoint that it was made of")
        elif not self.fp8.names:
            message = "has no matrix NAME.weight of a linear layer in 16 or 32 bits"
            yield Problem(str(source), message, "a checkpoint in the names of the model hub")
        if target.resolve().is_relative_to(source.resolve()):
            yield Problem(str(target), f"is in {source}, which is read", "name another folder")
        elif problem := self._occupied():
            yield problem
        else:
            yield from self._too_little_space()

    def _occupied(self) -> Problem | None:
        target = self._target
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            return None
        if not (target / BEGUN).is_file():
            remedy = "name a new folder; --check compares a finished one"
            return Problem(str(target), "is there already", remedy)
        begun = json.loads((target / BEGUN).read_text(encoding="utf-8"))
        if begun == self._begun:
            return None
        rows, columns = begun["weight_block_size"]
        message = f"was begun of {begun['source']} in blocks of {rows} x {columns}"
        return Problem(str(target), message, "go on with the same, or name a new folder")

    def _too_little_space(self) -> Iterator[Problem]:
        there = next(folder for folder in (self._target, *self._target.resolve().parents) if folder.exists())
        free, needed = shutil.disk_usage(there).free, sum(map(self._bytes_of, self.left()))
        if free < needed:
            message = f"{needed / 2**30:.1f} GiB will be written, {free / 2**30:.1f} GiB are free"
            yield Problem(str(self._target), message, "free space, or a folder on another disk")

    def _bytes_of(self, file: str) -> int:
        """What a file will have: of each value that becomes FP8 one byte stays, and scales come to it."""
        size = (self._source.folder / file).stat().st_size
        for name in self.fp8.names.intersection(self.files[file]):
            info = self._source.tensors[name]
            rows, columns = info.shape
            scale_rows, scale_columns = _scale_shape(info.shape, self.fp8.block)
            size += 4 * scale_rows * scale_columns - rows * columns * (DTYPES[info.dtype].itemsize - 1)
        return size


def differences(source: SafetensorsFolder, target: Path, hf_config: Mapping[str, Any]) -> Iterator[Problem]:
    """Where `target`, whose config.json is given, is not `source` in FP8: to e4m3's rounding, else bit for bit.

    Raises RlcoreError for a target that is not FP8 in blocks, or cannot be read.
    """
    fp8 = read_fp8_format(target, hf_config)
    if fp8 is None:
        raise fail(f"{target}/{_CONFIG}", "has no quantization_config", "a folder that this command has made")
    with SafetensorsFolder(target) as made:
        expected = source.tensors.keys() | {name + SCALE for name in fp8.names}
        for name in sorted(expected ^ made.tensors.keys()):
            what = "is missing" if name in expected else f"is not in {source.folder}"
            yield Problem(f"{target}: {name}", what, _AGAIN)
        for file, names in _by_file(source).items():
            common = {name for name in names if name in made.tensors}
            scales = {name + SCALE for name in common & fp8.names}
            with (
                SafetensorsFolder(source.folder, [file]) as old,
                SafetensorsFolder(target, {made.tensors[name].file for name in common | scales}) as new,
            ):
                for name in sorted(common):
                    if message := _difference(name, old, new, fp8):
                        yield Problem(f"{target / new.tensors[name].file}: {name}", message, _AGAIN)


_AGAIN = "convert it again, into a new folder"


def _difference(name: str, source: SafetensorsFolder, made: SafetensorsFolder, fp8: Fp8Format) -> str:
    """What is wrong with a tensor that both have, nothing if it is right."""
    old, new = source.tensors[name], made.tensors[name]
    if old.shape != new.shape:
        return f"has shape {list(new.shape)}, the source {list(old.shape)}"
    if name not in fp8.names:
        if old.dtype != new.dtype:
            return f"has type {new.dtype}, the source {old.dtype}"
        same = torch.equal(made.tensor(name), source.tensor(name))
        return "" if same else "differs from the source, though it is not quantized"
    scales = made.tensors[name + SCALE].shape
    if scales != (right := _scale_shape(old.shape, fp8.block)):
        return f"has scales of shape {list(scales)}, blocks need {list(right)}"
    return _beyond_rounding(source.tensor(name).float(), made.tensor(name), made.tensor(name + SCALE), fp8)


def _beyond_rounding(weight_nk: Tensor, values_nk: Tensor, scales: Tensor, fp8: Fp8Format) -> str:
    error_nk = (dequantize_blocks(values_nk, scales, fp8.block) - weight_nk).abs()
    smallest_nk = dequantize_blocks(torch.full_like(weight_nk, _SMALLEST), scales, fp8.block)
    # Written so that what is no number is beyond it too.
    beyond_nk = ~(error_nk <= torch.maximum(weight_nk.abs() * _ROUNDING, smallest_nk))
    if not (count := int(beyond_nk.sum())):
        return ""
    row, column = (int(place) for place in beyond_nk.nonzero()[0])
    found = float(values_nk[row, column].float() * scales[row // fp8.block[0], column // fp8.block[1]])
    return f"{count} values are off, the first at [{row}, {column}]: {found:g}, not {weight_nk[row, column]:g}"


def _is_linear(name: str, info: TensorInfo) -> bool:
    """Whether it is a matrix of the kind that published FP8 checkpoints have in FP8."""
    module, _, kind = name.rpartition(".")
    kept = _KEPT.search(module.rpartition(".")[2])
    return kind == "weight" and len(info.shape) == 2 and info.dtype in DTYPES and not kept


def _settings(source: SafetensorsFolder, fp8: Fp8Format) -> dict[str, Any]:
    """The quantization_config; servers take each linear layer for FP8 that it does not except."""
    modules = {name.rpartition(".")[0] for name in source.tensors.keys() - fp8.names}
    converted = {name.rpartition(".")[0] for name in fp8.names}
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(fp8.block),
        "modules_to_not_convert": sorted(modules - converted),
    }


def _by_file(folder: SafetensorsFolder) -> dict[str, list[str]]:
    names: dict[str, list[str]] = defaultdict(list)
    for name, info in folder.tensors.items():
        names[info.file].append(name)
    return names


def _scale_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    return tuple(-(-size // each) for size, each in zip(shape, block, strict=True))


@contextmanager
def _written(place: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        remedy = "free space or permission to write; the same command then goes on from here"
        raise fail(str(place), f"cannot be written: {error}", remedy) from None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    draft = path.with_name(path.name + ".partial")
    draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)
