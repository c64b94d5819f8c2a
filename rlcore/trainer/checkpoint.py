"""Trainer state in Megatron's torch_dist format: weights, optimizer, schedule and random states."""

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


def load_state(state: TrainingState, folder: Path) -> None:
    """Read back what `save_state` wrote, into weights, optimizer, schedule and random states of this rank."""
    loaded = dist_checkpointing.load(_sharded(state, is_loading=True), str(folder))
    for number, stage in enumerate(state.stages):
        stage.module.load_state_dict(loaded[_stage_key(number)])
    state.optimizer.load_state_dict(loaded["optimizer"])
    state.schedule.num_steps = 0
    state.schedule.load_state_dict(loaded["schedule"])
    _set_random_states(loaded["random"])


def _sharded(state: TrainingState, is_loading: bool) -> dict[str, Any]:
    metadata = {
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "distrib_optim_sharding_type": "fully_reshardable",
    }
    weights = {
        _stage_key(number): stage.module.sharded_state_dict(metadata=metadata)
        for number, stage in enumerate(state.stages)
    }
    model = weights if len(weights) > 1 else weights[_stage_key(0)]
    rank, world_size = dist.get_rank(), dist.get_world_size()
    return {
        **weights,
        "optimizer": state.optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=metadata),
        "schedule": state.schedule.state_dict(),
        "random": ShardedObject("random", _random_states(), (world_size,), (rank,)),
    }


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
