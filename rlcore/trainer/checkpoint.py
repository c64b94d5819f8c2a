"""Trainer state in Megatron's torch_dist format: weights, optimizer, schedule and random states.

Whatever layout wrote it, any other reads it: tensors are stored by the model's names and whole shapes, of which
each rank writes and reads its own parts. Only random states belong to ranks, and so to one layout.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch.distributed.checkpoint.api import CheckpointException

from rlcore.errors import fail
from rlcore.models.forward import PolicyModel
from rlcore.trainer.contents import CONFIG, check_whole
from rlcore.trainer.moments import Moments
from rlcore.trainer.optimizer import TrainingState
from rlcore.trainer.setup import seed_everything
from rlcore.trainer.state_writer import StateWriter

_SHARDING = "fully_reshardable"


def start_saving(state: TrainingState, folder: Path, *, snapshot: bool) -> StateWriter:
    """Plan a save of everything that training needs to go on, to `folder`, which is made where it is missing.

    All ranks take part. With `snapshot` training may go on while the writer writes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    common = {
        "layout": _layout(),
        "schedule": state.schedule.state_dict(),
        "guard": state.guard.state_dict(),
    }
    weights = _weights(_policies(state))
    moments = _moments(state, weights)
    return StateWriter(
        {**weights, **common, "optimizer": _sharded(moments), "random": _random()},
        folder,
        moments,
        snapshot=snapshot,
    )


def is_torch_dist(folder: Path) -> bool:
    """Whether a folder is a checkpoint in this format."""
    return (folder / CONFIG).is_file()


def load_weights(stages: Sequence[PolicyModel], folder: Path) -> None:
    """Read only the weights. Raises RlcoreError where `folder` holds none, is damaged, or of another model."""
    if not is_torch_dist(folder):
        raise fail(str(folder), "is no torch_dist checkpoint", f"name a folder with a {CONFIG}")
    check_whole(folder)
    _fill(stages, _load(_weights(stages), folder))


def load_state(state: TrainingState, folder: Path, seed: int) -> bool:
    """Read back what was saved, into weights, optimizer, schedule and random states of this rank.

    Returns whether the random states are those of the save. Another layout has no use for them: its ranks are
    seeded from the run's seed and the number of steps taken. Raises RlcoreError for what is damaged, or of
    another model.
    """
    check_whole(folder)
    common = dist_checkpointing.load_common_state_dict(str(folder))
    same_layout: bool = common["layout"] == _layout()
    policies = _policies(state)
    states = {"optimizer": _sharded(_moments(state, _weights(policies)))}
    loaded = _load(states | ({"random": _random()} if same_layout else {}), folder)
    state.schedule.num_steps = 0
    state.schedule.load_state_dict(common["schedule"])
    _fill_optimizer(state, loaded["optimizer"])
    # Weights come last: before it reads its states, Megatron's hybrid optimizer takes a step on noise.
    _fill(policies, _load(_weights(policies), folder))
    state.guard.load_state_dict(common["guard"])
    if same_layout:
        _set_random_states(loaded["random"])
    else:
        seed_everything(seed + state.schedule.num_steps)
    return same_layout


def _load(asked: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Read the parts that this rank asks for; what several ranks need, one of them reads for all."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    strategy = FullyParallelLoadStrategyWrapper(TorchDistLoadShardedStrategy(), group)
    try:
        return dist_checkpointing.load(asked, str(folder), sharded_strategy=strategy)
    except (CheckpointException, AssertionError) as error:
        # Megatron asserts shapes; torch's reader collects what each rank ran into.
        failures = error.failures.values() if isinstance(error, CheckpointException) else [(error, None)]
        cause, _ = next(iter(failures))
        remedy = "a checkpoint that was trained from model.checkpoint"
        message = f"does not fit the model, or is damaged: {_first_line(cause)}"
        raise fail(str(folder), message, remedy) from None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _layout() -> dict[str, int]:
    return {
        "world": dist.get_world_size(),
        "tp": parallel_state.get_tensor_model_parallel_world_size(),
        "pp": parallel_state.get_pipeline_model_parallel_world_size(),
        "cp": parallel_state.get_context_parallel_world_size(),
        "ep": parallel_state.get_expert_model_parallel_world_size(),
        "etp": parallel_state.get_expert_tensor_parallel_world_size(),
    }


def _policies(state: TrainingState) -> list[PolicyModel]:
    return [stage.module for stage in state.stages]


def _metadata() -> dict[str, Any]:
    return {
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "distrib_optim_sharding_type": _SHARDING,
    }


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


def _moments(state: TrainingState, weights: Mapping[str, Any]) -> list[Moments]:
    """Those of each optimizer: experts have one of their own where they are parallel, and none elsewhere.

    Megatron puts that into its names, and its groups of parameters into the checkpoint; here each is asked for
    tensors alone, so that a checkpoint does not tell how many optimizers wrote it.
    """
    return [Moments(part, weights) for part in state.optimizer.chained_optimizers]


def _sharded(moments: Sequence[Moments]) -> dict[int, Any]:
    return {number: one.sharded for number, one in enumerate(moments)}


def _fill_optimizer(state: TrainingState, loaded: Mapping[int, Any]) -> None:
    """Groups of parameters follow from recipe and schedule, but for the count of steps."""
    for number, part in enumerate(state.optimizer.chained_optimizers):
        own = part.state_dict()
        for group in own["optimizer"]["param_groups"]:
            group["step"] = int(state.schedule.num_steps)
        part.load_state_dict({**own, "param_state": loaded[number], "param_state_sharding_type": _SHARDING})


def _random() -> ShardedObject:
    return ShardedObject("random", _random_states(), (dist.get_world_size(),), (dist.get_rank(),))


def _random_states() -> dict[str, Any]:
    states = {"cpu": torch.get_rng_state(), "tracker": get_cuda_rng_tracker().get_states()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    get_cuda_rng_tracker().set_states(states["tracker"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
