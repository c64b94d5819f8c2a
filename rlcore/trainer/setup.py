"""Brings Megatron's process groups and random states up on this rank, and takes them down again."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from rlcore.config.schema import Parallel
from rlcore.layout.plan import expert_sizes
from rlcore.models.config import virtual_stages

_TIMEOUT = timedelta(minutes=30)
# TP ranks are neighbours, the stages of a pipeline farthest apart; plans of a layout count on it.
_ORDER = "tp-cp-ep-dp-pp"
# Megatron-LM's distance between the seeds of pipeline ranks.
_PIPELINE_SEED = 100


def initialize(
    parallel: Parallel,
    seed: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    store: dist.Store | None = None,
    timeout: timedelta = _TIMEOUT,
) -> None:
    """Join the process group, lay out Megatron's groups by `parallel` and seed every generator.

    One process needs no store and opens no port; more of them meet in `store`. Uses NCCL where there is a
    GPU and gloo elsewhere; a collective that others do not join ends in an error after `timeout`. A second call
    lays the groups out anew.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            store=store or dist.HashStore(),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
        )
    # One process has one layout, and every new one costs it some thirty sockets and threads.
    if dist.get_world_size() > 1 or not parallel_state.is_initialized():
        _lay_out(parallel, timeout)
    seed_everything(seed)


def _lay_out(parallel: Parallel, timeout: timedelta) -> None:
    parallel_state.destroy_model_parallel()
    ep, etp = expert_sizes(parallel)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tp,
        pipeline_model_parallel_size=parallel.pp,
        virtual_pipeline_model_parallel_size=virtual_stages(parallel),
        context_parallel_size=parallel.cp,
        expert_model_parallel_size=ep,
        expert_tensor_parallel_size=etp,
        distributed_timeout_minutes=max(1, round(timeout.total_seconds() / 60)),
        order=_ORDER,
        create_gloo_process_groups=False,
    )


def seed_everything(seed: int) -> None:
    """Seed python, numpy, torch and Megatron's tracker of per-rank states; pipeline ranks draw differently.

    Ranks that share a stage draw alike, but for the states that the tracker keeps for parts of tensors.
    """
    seed += _PIPELINE_SEED * parallel_state.get_pipeline_model_parallel_rank()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


def destroy() -> None:
    """Leave every process group, so that another `initialize` may follow in this process."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def process_groups(parallel: Parallel, seed: int) -> Iterator[None]:
    """Have the process groups of a single process for as long as the body runs."""
    initialize(parallel, seed)
    try:
        yield
    finally:
        destroy()
