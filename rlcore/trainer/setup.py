"""Brings Megatron's process groups and random states up on this rank, and takes them down again."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from rlcore.config.schema import Parallel


def initialize(
    parallel: Parallel,
    seed: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    store: dist.Store | None = None,
) -> None:
    """Join the process group, lay out Megatron's groups by `parallel` and seed every generator.

    One process needs no store and opens no port; more of them meet in `store`. Uses NCCL where there is a
    GPU and gloo elsewhere. A second call lays the groups out anew.
    """
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if not dist.is_initialized():
        dist.init_process_group(backend, store=store or dist.HashStore(), rank=rank, world_size=world_size)
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tp,
        pipeline_model_parallel_size=parallel.pp,
        virtual_pipeline_model_parallel_size=parallel.vpp,
        context_parallel_size=parallel.cp,
        expert_model_parallel_size=parallel.ep,
        expert_tensor_parallel_size=parallel.etp,
        create_gloo_process_groups=False,
    )
    seed_everything(seed)


def seed_everything(seed: int) -> None:
    """Seed python, numpy, torch and Megatron's tracker of per-rank states."""
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
