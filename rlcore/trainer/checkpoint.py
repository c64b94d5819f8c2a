"""Trainer state in Megatron's torch_dist format: weights, optimizer, schedule and random states."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from rlcore.errors import fail
from rlcore.models.forward import PolicyModel
from rlcore.trainer.optimizer import TrainingState


class _InProcessSave(TorchDistSaveShardedStrategy):
    """Megatron's torch_dist files, written by this process.

    Megatron's own writer forks helpers and starts a manager process for them, which costs seconds on the first
    save, imports the main program again and outlives it.
    """

    def save(self, sharded_state_dict: Any, checkpoint_dir: Any) -> None:
        tensors, _, _ = _replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        dcp.save(
            mcore_to_pyt_state_dict(tensors, False),
            storage_writer=dcp.FileSystemWriter(checkpoint_dir, thread_count=1),
            planner=MCoreSavePlanner(
                dedup_replicated_tensors=not self.keep_only_main_replica, flatten_state_dict=False
            ),
        )


def save_state(state: TrainingState, folder: Path) -> None:
    """Write everything that training needs to go on to `folder`, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    dist_checkpointing.save(
        _sharded(state, is_loading=False), str(folder), sharded_strategy=_InProcessSave("torch_dist", 1)
    )


def load_weights(stages: Sequence[PolicyModel], folder: Path) -> None:
    """Read only the weights of a torch_dist checkpoint. Raises RlcoreError where `folder` holds none."""
    if not dist_checkpointing.check_is_distributed_checkpoint(str(folder)):
        raise fail("model.load", f"{folder} is no torch_dist checkpoint", "name a folder with a metadata.json")
    _fill(stages, dist_checkpointing.load(_weights(stages), str(folder)))


def load_state(state: TrainingState, folder: Path) -> None:
    """Read back what `save_state` wrote, into weights, optimizer, schedule and random states of this rank."""
    loaded = dist_checkpointing.load(_sharded(state, is_loading=True), str(folder))
    _fill(_policies(state), loaded)
    state.optimizer.load_state_dict(loaded["optimizer"])
    state.schedule.num_steps = 0
    state.schedule.load_state_dict(loaded["schedule"])
    state.guard.load_state_dict(loaded["guard"])
    _set_random_states(loaded["random"])


def _sharded(state: TrainingState, is_loading: bool) -> dict[str, Any]:
    weights = _weights(_policies(state))
    model = weights if len(weights) > 1 else weights[_stage_key(0)]
    rank, world_size = dist.get_rank(), dist.get_world_size()
    return {
        **weights,
        "optimizer": state.optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=_metadata()),
        "schedule": state.schedule.state_dict(),
        "guard": state.guard.state_dict(),
        "random": ShardedObject("random", _random_states(), (world_size,), (rank,)),
    }


def _metadata() -> dict[str, Any]:
    return {
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "distrib_optim_sharding_type": "fully_reshardable",
    }


def _policies(state: TrainingState) -> list[PolicyModel]:
    return [stage.module for stage in state.stages]


def _weights(stages: Sequence[PolicyModel]) -> dict[str, Any]:
    metadata = _metadata()
    return {
        _stage_key(number): stage.sharded_state_dict(metadata=metadata) for number, stage in enumerate(stages)
    }


def _fill(stages: Sequence[PolicyModel], loaded: Mapping[str, Any]) -> None:
    for number, stage in enumerate(stages):
        stage.load_state_dict(loaded[_stage_key(number)])


def _stage_key(number: int) -> str:
    return f"model{number}"


def _random_states() -> dict[str, Any]:
    states = {"cpu": torch.get_rng_state(), "tracker": get_cuda_rng_tracker().get_states()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    get_cuda_rng_tracker().set_states(states["tracker"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
