"""Pytest fixtures for the tests of model plugins; a plugin's conftest.py imports them.

It gives two of its own: `config` is the content of a tiny model's config.json, and `family` the plugin's two
functions that make a spec of a config, and a bridge of a spec.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from rlcore.config.schema import Parallel, Recompute
from rlcore.models.hf_config import read_hf_config
from rlcore.testing.tiny import tiny_checkpoint
from rlcore.trainer.setup import process_groups

if TYPE_CHECKING:
    from rlcore.bridge.table import WeightBridge
    from rlcore.models.forward import PolicyModel
    from rlcore.models.spec import ModelSpec

    Family = tuple[Callable[[Mapping[str, Any]], ModelSpec], Callable[[ModelSpec], WeightBridge]]
    Built = tuple[ModelSpec, WeightBridge, list[PolicyModel]]


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


@pytest.fixture
def build(megatron: None, family: "Family") -> "Callable[..., Built]":
    """Gives spec, bridge and the stages of the Megatron model for a checkpoint folder, or for a config.

    Its weights are not filled in. MTP layers are left out unless `mtp_layers` says how many there are.
    """
    from rlcore.models.build import build_model, transformer_config

    make_spec, make_bridge = family

    def make(
        source: Path | Mapping[str, Any],
        *,
        meta: bool = False,
        dtype: torch.dtype = torch.float32,
        mtp_layers: int = 0,
    ) -> "Built":
        spec = make_spec(read_hf_config(source) if isinstance(source, Path) else source)
        config = transformer_config(
            spec,
            parallel=Parallel(),
            dtype=dtype,
            recompute=Recompute(),
            megatron_overrides={},
            mtp_layers=mtp_layers,
        )
        return spec, make_bridge(spec), build_model(spec, config, meta=meta)

    return make
