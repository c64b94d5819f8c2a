"""Two ranks in processes of their own, called as one; whatever ends one of them ends all, with its name."""

import os

import pytest
import torch
import torch.distributed as dist

from rlcore.cluster.group import Rank, RanksLostError
from rlcore.cluster.ray_group import RayGroup
from rlcore.data.train_sample import TrainSample
from rlcore.errors import RlcoreError, fail


class Adder:
    """A worker that does little, or what a bad one does."""

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        dist.init_process_group("gloo", store=rank.store, rank=rank.number, world_size=rank.world_size)

    def pid(self):
        print("asked for the pid")
        return os.getpid()

    def add(self, number):
        total = torch.tensor(float(number + self.rank.number))
        dist.all_reduce(total)
        return total

    def total_length(self, samples):
        return sum(map(len, [sample.tokens for sample in samples])), samples[0].advantages.dtype.name

    def refuse(self, ranks):
        if self.rank.number in ranks:
            raise fail("model.checkpoint", "is no good", "a better one")
        self.rank.enter("waiting for a refusal")
        dist.barrier()

    def fall(self):
        self.rank.enter("stumbling")
        if self.rank.number == 1:
            raise ValueError("over my own feet")
        dist.barrier()


@pytest.fixture
def group():
    group = RayGroup(Adder, ranks=2, threads=1)
    yield group
    group.close()


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_ranks_are_processes_that_work_together(group, tmp_path):
    pids = group.call("pid")
    assert len({*pids, os.getpid()}) == 3
    assert group.call("add", 10) == [torch.tensor(21.0), torch.tensor(21.0)]
    sample = TrainSample(name="s", tokens=[1, 2, 3], prompt_length=1, loss_mask=[1, 1], advantages=[0.5, 0.5])
    assert group.call("total_length", [sample]) == [(3, "float32")] * 2
    group.log_to(tmp_path)
    group.call("pid")
    assert (tmp_path / "trainer-1.log").read_text().count("asked for the pid") == 2
    with pytest.raises(RlcoreError, match="is no good") as caught:
        group.call("refuse", ranks=(0, 1))
    assert len(caught.value.problems) == 1
    assert group.alive
    with pytest.raises(RanksLostError, match=r"rank 1 \(pid \d+\): fall ended in ValueError"):
        group.call("fall")
    assert not group.alive
    group.close()
    assert not any(map(is_running, pids))
