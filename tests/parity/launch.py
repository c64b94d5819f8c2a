"""Starts ranks as forks of this process, so that Megatron is imported once for all of them."""

import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # Optimizers import it: here once, not in every rank.
import torch.distributed as dist

from rlcore.trainer.setup import destroy

# Seconds without a result after which a launch has failed: a rank that waits for one that never comes.
PATIENCE = 120.0

Task = Callable[[], Any]


class RanksFailed(Exception):
    """A rank raised an error, died, or was waited for too long."""


def run_tasks(tasks: Sequence[Task], world_size: int) -> Iterator[Any]:
    """Run every task on all ranks, one task after the other; yield what rank 0 returns of each.

    Raises RanksFailed where a task fails on any rank; all ranks are gone by then.
    """
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world_size, Path(folder) / "store", tasks, results)
        ranks = [fork.Process(target=_rank, args=(rank, *arguments)) for rank in range(world_size)]
        try:
            for rank in ranks:
                rank.start()
            for _ in tasks:
                yield _next_result(ranks, results)
            for rank in ranks:
                rank.join(PATIENCE)
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()


def _rank(rank: int, world_size: int, meeting: Path, tasks: Sequence[Task], results: SimpleQueue) -> None:
    torch.set_num_threads(1)
    try:
        for number, task in enumerate(tasks):
            store = dist.FileStore(f"{meeting}-{number}", world_size)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
            result = task()
            if rank == 0:
                results.put(result)
            # No rank leaves while another is still at this task.
            dist.barrier()
            # Groups have threads that wake a hundred times a second: those of past tasks would slow later ones.
            destroy()
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        results.put(RanksFailed(f"rank {rank}: {type(error).__name__}: {error}"))


def _next_result(ranks: Sequence[BaseProcess], results: SimpleQueue) -> Any:
    deadline = time.monotonic() + PATIENCE
    while results.empty():
        if died := [rank for rank, process in enumerate(ranks) if process.exitcode]:
            raise RanksFailed(f"rank {died[0]} died, exit code {ranks[died[0]].exitcode}")
        if time.monotonic() > deadline:
            raise RanksFailed(f"no result for {PATIENCE:.0f} s")
        time.sleep(0.005)
    result = results.get()
    if isinstance(result, RanksFailed):
        raise result
    return result
