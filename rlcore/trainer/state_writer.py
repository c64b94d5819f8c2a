"""Writes sharded state in Megatron's torch_dist format: planned by all ranks, written by each one by itself.

Megatron's own writer forks helpers and starts a manager process for them, which costs seconds at first, imports
the main program again and outlives it. Here a plain thread can write, while training goes on.
"""

import errno
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import _DistWrapper

from rlcore.errors import Problem, raise_if_any
from rlcore.ranks import from_all_ranks
from rlcore.trainer.contents import COMMON
from rlcore.trainer.moments import Moments, address

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StateWriter:
    """One save of `state` to `folder`. All ranks make it together, write by themselves, `seal` together.

    `state` holds Megatron's sharded tensors and objects; the rest of it is equal on all ranks. With `snapshot`
    tensors are copied to host memory first, so that they may change before they are written. What
    data-parallel ranks hold alike is shared out, so that each tensor is written once, by one of them; of
    `moments`, which `state` describes, only that is read.
    """

    def __init__(
        self, state: Mapping[str, Any], folder: Path, moments: Sequence[Moments], *, snapshot: bool
    ) -> None:
        self._folder = folder
        self._results: list[WriteResult] = []
        self._thread: threading.Thread | None = None
        self._problem: Problem | None = None
        sharded, self._common = save_preprocess(dict(state))
        FullyParallelSaveStrategyWrapper(
            TorchDistSaveShardedStrategy("torch_dist", 1),
            parallel_state.get_data_parallel_group(with_context_parallel=True),
        ).apply_saving_parallelization(sharded)
        mine, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, keep_only_main_replica=True)
        storages = {address(part.data) for part in nested_values(mine) if _is_moment(part)}
        assert storages <= set().union(*(one.storages for one in moments)), "a copy would stay empty"
        for one in moments:
            one.fill(storages)
        if snapshot:
            _copy_to_host(mine)
        self._plan(mcore_to_pyt_state_dict(mine, False))

    def _plan(self, tensors: dict[str, Any]) -> None:
        """Agree on who writes what where; rank 0 keeps the table of contents."""
        ranks = _DistWrapper(None, True, 0)
        self._planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
        self._files = FileSystemWriter(self._folder, thread_count=1)

        def own_part() -> Any:
            self._planner.set_up_planner(tensors, self._files.storage_meta(), ranks.is_coordinator)
            self._files.set_up_storage_writer(ranks.is_coordinator, rank=ranks.rank)
            return self._files.prepare_local_plan(self._planner.create_local_plan())

        def whole(parts: list[Any]) -> list[Any]:
            parts, self._contents = self._planner.create_global_plan(parts)
            return self._files.prepare_global_plan(parts)

        self._work = self._planner.finish_plan(ranks.reduce_scatter("plan", own_part, whole))

    def write(self) -> None:
        """Write this rank's files, on any thread: no other rank is needed. What fails is kept for `seal`."""
        try:
            self._results = self._files.write_data(self._work, self._planner).wait()
            if dist.get_rank() == 0:
                with (self._folder / COMMON).open("wb") as file:
                    torch.save(self._common, file)
        except Exception as error:
            self._problem = _problem(self._folder, error)

    def write_in_background(self) -> None:
        """`write` on a thread of its own."""
        self._thread = threading.Thread(target=self.write, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_writing(self) -> bool:
        """Whether this rank still writes in the background."""
        return self._thread is not None and self._thread.is_alive()

    def seal(self) -> None:
        """Wait until every rank has written, then write the table of contents.

        Raises RlcoreError, on all ranks, for whatever kept any of them from writing.
        """
        if self._thread:
            self._thread.join()
        raise_if_any(filter(None, from_all_ranks(self._problem)))
        results = [self._results] * dist.get_world_size()
        dist.gather_object(self._results, results if dist.get_rank() == 0 else None)
        if dist.get_rank() == 0:
            try:
                self._files.finish(self._contents, results)
                save_config(CheckpointingConfig("torch_dist", 1), str(self._folder))
            except OSError as error:
                self._problem = _problem(self._folder, error)
        raise_if_any(filter(None, from_all_ranks(self._problem)))


def _copy_to_host(tensors: Any) -> None:
    for part in nested_values(tensors):
        # Moments are copies as they come.
        if isinstance(part, ShardedTensor) and not _is_moment(part):
            part.data = part.data.detach().to("cpu", copy=True)


def _is_moment(part: Any) -> bool:
    return isinstance(part, ShardedTensor) and part.key.startswith("optimizer.")


def _problem(folder: Path, error: Exception) -> Problem:
    cause = _cause(error)
    full = isinstance(cause, OSError) and cause.errno in _FULL
    remedy = "make room, or lower checkpoints.keep_last; earlier checkpoints are as they were" if full else ""
    return Problem(f"checkpoint {folder}", f"rank {dist.get_rank()} could not write: {cause}", remedy)


def _cause(error: BaseException) -> BaseException:
    """What the system said first: torch's writer then fails on its own, and says something else."""
    while error.__context__:
        error = error.__context__
    return error
