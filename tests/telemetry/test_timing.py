import pytest

from rlcore.telemetry.timing import PhaseTimer


class Clock:
    """Time that passes only when told."""

    now = 0.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


def test_the_parts_of_a_step_sum_to_the_whole():
    clock = Clock()
    timer = PhaseTimer(clock=clock)
    with timer("rollout"):
        clock.wait(3)
        with timer("reward"):
            clock.wait(1)
    clock.wait(0.5)
    split = timer.end_step()
    assert split == {"time/rollout": 3, "time/reward": 1, "time/other": 0.5, "time/step": 4.5}


def test_a_step_begins_where_the_last_ended():
    clock = Clock()
    timer = PhaseTimer(clock=clock)
    timer.end_step()
    with timer("train"):
        clock.wait(2)
    with timer("train"):
        clock.wait(2)
    assert timer.end_step() == {"time/train": 4, "time/other": 0, "time/step": 4}


def test_a_phase_that_fails_is_timed_and_left():
    clock = Clock()
    timer = PhaseTimer(clock=clock)
    with pytest.raises(ZeroDivisionError), timer("train"):
        clock.wait(1 / 0)
    assert timer.current == "other"
    clock.wait(1)
    assert timer.end_step() == {"time/train": 0, "time/other": 1, "time/step": 1}


def test_changes_of_phase_are_announced():
    seen = []
    timer = PhaseTimer(seen.append)
    with timer("rollout"), timer("reward"):
        pass
    assert seen == ["rollout", "reward", "rollout", "other"]
