"""Whether a torch_dist checkpoint is whole, by its own table of contents: told before any of it is read."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.dist_checkpointing import load_common_state_dict
from megatron.core.dist_checkpointing.core import maybe_load_config
from torch.distributed.checkpoint import FileSystemReader

from rlcore.errors import Problem
from rlcore.ranks import raise_together

CONFIG = "metadata.json"
COMMON = "common.pt"
_CONTENTS = ".metadata"


def check_whole(folder: Path) -> None:
    """Raise one RlcoreError, on all ranks, for what the checkpoint lacks; all ranks must ask, rank 0 looks."""
    raise_together(damage(folder) if dist.get_rank() == 0 else ())


def damage(folder: Path) -> Iterator[Problem]:
    """One problem if the checkpoint lacks something. Bytes of tensors that were overwritten are not found."""
    if found := next(_damages(folder), None):
        yield Problem(str(folder), f"is damaged: {found}", "a whole checkpoint: fetch or copy it again")


def _damages(folder: Path) -> Iterator[str]:
    read: dict[str, Any] = {}
    for name, reader in _READERS.items():
        if not (folder / name).is_file():
            yield f"{name} is missing"
        try:
            read[name] = reader(str(folder))
        except Exception as error:  # a torn pickle may raise anything
            yield f"{name} cannot be read ({type(error).__name__})"
    for name, size in read[_CONTENTS].items():
        file = folder / name
        if not file.is_file():
            yield f"{name} is missing"
        elif (found := file.stat().st_size) < size:
            yield f"{name} has {found:,} bytes instead of at least {size:,}"


def _sizes(folder: str) -> dict[str, int]:
    """Where the last tensor of each file ends."""
    sizes: dict[str, int] = defaultdict(int)
    for part in FileSystemReader(folder).read_metadata().storage_data.values():
        sizes[part.relative_path] = max(sizes[part.relative_path], part.offset + part.length)
    return sizes


_READERS: dict[str, Callable[[str], Any]] = {
    CONFIG: maybe_load_config,
    COMMON: load_common_state_dict,
    _CONTENTS: _sizes,
}
