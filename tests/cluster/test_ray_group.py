"""Two ranks in processes of their own, called as one; whatever ends one of them ends all, with its name."""

import os
import signal
import threading
import time

import pytest
import torch
import torch.distributed as dist

from rlcore.cluster.group import Rank, RanksLostError
from rlcore.cluster.local_ray import LocalRay
from rlcore.cluster.ray_group import RayGroup
from rlcore.data.train_sample import TrainSample
from rlcore.errors import RlcoreError, fail


class Adder:
    """A worker that adds over ranks, and stumbles when told to."""

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

    def part_of_a_buffer(self):
        return torch.arange(1000, dtype=torch.bfloat16)[10:12]

    def lengths(self, samples):
        types = [sample.advantages.dtype.name for sample in samples]
        hashes = [sample.selections.tolist() for sample in samples]
        return [(len(sample.tokens), sample.name) for sample in samples], types, hashes

    def refuse(self):
        raise fail("model.checkpoint", "is no good", "a better one")

    def fall(self):
        if self.rank.number == 1:
            raise ValueError("over my own feet")
        self.meet()

    def sleep(self, seconds):
        time.sleep(seconds)

    def meet(self):
        self.rank.enter("meeting")
        dist.barrier()


@pytest.fixture
def group():
    group = RayGroup(Adder, 2, LocalRay(2, threads=1))
    yield group
    group.close()


@pytest.fixture
def pids(group):
    return group.call("pid")


def test_ranks_are_processes_that_work_together_until_one_falls(group, pids, ends, tmp_path):
    assert len({*pids, os.getpid()}) == 3
    assert group.call("add", 10) == [torch.tensor(21.0)] * 2
    assert group.call("part_of_a_buffer")[1].tolist() == [10, 11]
    given = {"loss_mask": [1, 1], "advantages": [0.5, 0.5], "selections": [-(2**63), 2**63 - 1]}
    sample = TrainSample(name="s", tokens=[1, 2, 3], prompt_length=1, **given)
    assert group.call("lengths", [sample]) == [([(3, "s")], ["float32"], [given["selections"]])] * 2
    group.log_to(tmp_path)
    group.call("pid")
    assert (tmp_path / "trainer-1.log").read_text().count("asked for the pid") == 2

    with pytest.raises(RlcoreError, match="is no good") as refused:
        group.call("refuse")
    assert len(refused.value.problems) == 1
    assert group.alive

    with pytest.raises(RanksLostError, match=r"rank 1 \(pid \d+\): fall ended in ValueError") as fell:
        group.call("fall")
    assert str(tmp_path / "trainer-1.log") in str(fell.value)
    assert not group.alive
    group.close()
    assert all(map(ends, pids))


def test_a_rank_that_is_killed_is_named_and_the_others_end_too(group, pids, ends):
    group.check()
    threading.Timer(0.5, os.kill, (pids[0], signal.SIGKILL)).start()
    with pytest.raises(RanksLostError, match=rf"rank 0 \(pid {pids[0]}\): its process ended during sleep"):
        group.call("sleep", 600)
    with pytest.raises(RanksLostError):
        group.check()
    group.close()
    assert all(map(ends, pids))


def test_a_rank_that_is_stopped_is_named_and_can_be_given_up(group, pids, ends):
    os.kill(pids[1], signal.SIGSTOP)
    found = []

    def watch():
        while not group.stall():
            time.sleep(0.1)
        found.append(group.stall())
        group.give_up("enough waited")

    watching = threading.Thread(target=watch)
    watching.start()
    with pytest.raises(RanksLostError, match="enough waited"):
        group.call("meet")
    watching.join()
    assert "rank 1 does not answer in meet" in found[0].text
    assert "rank 0 waits for it (meeting since" in found[0].text
    group.close()
    assert all(map(ends, pids))


def test_more_ranks_than_gpus_are_refused_before_ray_starts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        RlcoreError, match=r"cluster\.gpus_per_node: 2 trainer ranks need a GPU each"
    ) as refused:
        LocalRay(2, threads=1)
    assert "gpus_per_node: 1" in str(refused.value)
