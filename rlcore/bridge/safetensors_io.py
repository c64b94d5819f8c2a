"""Folders of safetensors files: a lazy reader that finds damage first, and a writer that shards and indexes."""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlcore.errors import Problem, RlcoreError, fail

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# All that a folder may hold weights in; what else lies there belongs to the model whatever its weights are.
WEIGHT_FILES = ("*.safetensors", INDEX, "*.bin", "*.bin.index.json", "*.pt", "*.pth")


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says of a tensor; `dtype` in the words of safetensors (F32, BF16, F8_E4M3 …)."""

    file: str
    shape: tuple[int, ...]
    dtype: str


class SafetensorsFolder:
    """All tensors of a checkpoint folder, read when asked for; a context manager that keeps its files open.

    Opening reads headers only. Raises RlcoreError for missing or damaged files, all of them at once. What has
    been read of a file may stay in memory until it is closed; with `only`, no other files are opened.
    """

    def __init__(self, folder: Path, only: Collection[str] = ()) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        self._stack = ExitStack()
        problems: list[Problem] = []
        for name in only or self._file_names():
            try:
                self._files[name] = self._stack.enter_context(safe_open(folder / name, framework="pt"))
            except FileNotFoundError:
                problems.append(Problem(str(folder / name), "is missing, though the index lists it", _AGAIN))
            except (SafetensorError, OSError) as error:
                problems.append(Problem(str(folder / name), f"is truncated or damaged: {error}", _AGAIN))
        if problems:
            self._stack.close()
            raise RlcoreError(problems)

    def __enter__(self) -> "SafetensorsFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.clear()
        self._stack.close()

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""
        found: dict[str, TensorInfo] = {}
        for file, handle in self._files.items():
            for name in handle.keys():  # noqa: SIM118 - no mapping: the handle has only this method
                part = handle.get_slice(name)
                found[name] = TensorInfo(file, tuple(part.get_shape()), part.get_dtype())
        return found

    def slice(self, name: str) -> Any:
        """A lazy view of a tensor: indexing it by ranges reads those elements alone."""
        return self._files[self.tensors[name].file].get_slice(name)

    def tensor(self, name: str) -> Tensor:
        """Read a whole tensor."""
        return self._files[self.tensors[name].file].get_tensor(name)

    def _file_names(self) -> list[str]:
        index = self.folder / INDEX
        if index.is_file():
            return _indexed_files(index)
        names = sorted(path.name for path in self.folder.glob("*.safetensors"))
        if not names:
            raise fail(str(self.folder), "holds no *.safetensors file", "convert the weights to safetensors")
        return names


_AGAIN = "copy or download it again"


def _indexed_files(index: Path) -> list[str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted(set(weight_map.values()))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise fail(str(index), f"is no index of safetensors files: {error!r}", _AGAIN) from None


def write_folder(folder: Path, tensors: Iterable[tuple[str, Tensor]], *, shard_bytes: int) -> None:
    """Write tensors in order into files of at most `shard_bytes` (a larger tensor alone), and their index."""
    shards: list[list[str]] = []
    total = 0
    batch: dict[str, Tensor] = {}

    def flush() -> None:
        write_file(folder / _unnumbered(len(shards)), batch)
        shards.append(list(batch))
        batch.clear()

    for name, tensor in tensors:
        if batch and sum(t.nbytes for t in batch.values()) + tensor.nbytes > shard_bytes:
            flush()
        batch[name] = _own_memory(tensor)
        total += tensor.nbytes
    flush()
    _number(folder, shards, total)


def write_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into one file, which has its name when all of it is on the disk and not before."""
    draft = path.with_name(path.name + ".partial")
    draft.touch()
    mode = draft.stat().st_mode
    save_file({name: _own_memory(tensors[name]) for name in tensors}, draft, metadata={"format": "pt"})
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.chmod(mode)  # save_file makes it private; checkpoints are for servers of others too
    draft.replace(path)


def write_index(folder: Path, weight_map: Mapping[str, str], total: int) -> None:
    """Write which file holds which tensor, and how many bytes all tensors have."""
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def data_bytes(path: Path) -> int:
    """Bytes of a file's tensors: it begins with the length of its header, in 8 bytes, and the header."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def _own_memory(tensor: Tensor) -> Tensor:
    """A file takes no views into larger memory."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _unnumbered(number: int) -> str:
    return f"part-{number}.safetensors"


def _number(folder: Path, shards: list[list[str]], total: int) -> None:
    """Give the files their final names, which hold their count, and write the index where there are several."""
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for number, name in enumerate(names):
        (folder / _unnumbered(number)).rename(folder / name)
    if count > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        write_index(folder, weight_map, total)
