"""Pytest fixtures for the tests of model plugins; a plugin's conftest.py imports them and gives `config`.

`config` is a fixture too: the content of a tiny model's config.json.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rlcore.config.schema import Parallel
from rlcore.testing.tiny import tiny_checkpoint
from rlcore.trainer.setup import process_groups


@pytest.fixture(scope="module")
def megatron() -> Iterator[None]:
    """Process groups of one process; built models need them."""
    torch.set_num_threads(1)
    with process_groups(Parallel(), seed=0):
        yield


@pytest.fixture
def make_checkpoint(tmp_path: Path, config: Mapping[str, Any]) -> Callable[..., Path]:
    """Gives the folder of a random checkpoint; keywords change its config.json."""

    def make(seed: int = 0, name: str = "checkpoint", **changes: Any) -> Path:
        folder = tmp_path / name
        tiny_checkpoint(folder, {**config, **changes}, seed=seed, jitter=0.05)
        return folder

    return make
