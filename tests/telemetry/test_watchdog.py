import threading
from dataclasses import dataclass

import pytest

from rlcore.telemetry.events import EventLog, read_events
from rlcore.telemetry.watchdog import Watchdog


class Clock:
    """Time that passes only when told."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def watchdog(tmp_path, clock, warnings):
    events = EventLog(tmp_path / "events.jsonl", attempt=1)
    return Watchdog(events, tmp_path, stall_after=30.0, warn=warnings.append, clock=clock)


def test_a_run_that_moves_is_not_spoken_of(watchdog, clock, warnings):
    for _ in range(10):
        clock.now += 29
        watchdog.progress("samples")
        watchdog.check()
    assert warnings == []


def test_a_stall_names_phase_and_what_is_waited_for(watchdog, clock, warnings):
    watchdog.enter("reward")
    watchdog.progress("2 of 512 samples")
    clock.now += 31
    watchdog.check()
    assert len(warnings) == 1
    assert "no progress in phase 'reward' for 31 s, waiting for 2 of 512 samples" in warnings[0]


def test_a_stall_leaves_an_event_and_the_stacks(watchdog, clock, tmp_path):
    watchdog.enter("sync")
    clock.now += 31
    watchdog.check()
    (event,) = read_events(tmp_path / "events.jsonl")
    assert (event["kind"], event["phase"]) == ("stall", "sync")
    assert "test_a_stall_leaves_an_event_and_the_stacks" in (tmp_path / event["stacks"]).read_text()


def test_a_lasting_stall_is_repeated_ever_more_rarely(watchdog, clock, warnings):
    for _ in range(200):
        clock.now += 1
        watchdog.check()
    assert ["30 s" in text or "60 s" in text or "120 s" in text for text in warnings] == [True, True, True]


def test_the_thread_notices_a_stall_by_itself(tmp_path):
    warned = threading.Event()
    events = EventLog(tmp_path / "events.jsonl", attempt=1)
    with Watchdog(events, tmp_path, stall_after=0.02, warn=lambda _: warned.set()):
        assert warned.wait(10)


@dataclass
class Ranks:
    """Ranks of which none has moved for `seconds`, or that are in no call."""

    seconds: float | None = None
    text: str = "rank 1 is in save; rank 0 waits for it"
    ended: str = ""

    def stall(self):
        return self if self.seconds is not None else None

    def give_up(self, reason):
        self.ended = reason


@pytest.fixture
def ranks():
    return Ranks()


@pytest.fixture
def asking(tmp_path, clock, warnings, ranks):
    """A watchdog that can ask ranks."""
    events = EventLog(tmp_path / "events.jsonl", attempt=1)
    return Watchdog(events, tmp_path, 30.0, warnings.append, clock, ranks=ranks, end_after=100.0)


def test_ranks_that_move_are_progress(asking, clock, warnings, ranks):
    ranks.seconds = 2.0
    clock.now += 500
    asking.check()
    assert (warnings, ranks.ended) == ([], "")


def test_ranks_that_stand_still_are_named_and_after_long_given_up(asking, clock, warnings, ranks):
    clock.now, ranks.seconds = 31, 31.0
    asking.check()
    assert ranks.text in warnings[0]
    assert not ranks.ended
    clock.now, ranks.seconds = 101, 101.0
    asking.check()
    assert ranks.ended == f"none has moved for 101 s: {ranks.text}"


def test_a_long_wait_for_others_than_ranks_ends_nothing(asking, clock, warnings, ranks):
    clock.now = 500
    asking.check()
    assert len(warnings) == 1
    assert not ranks.ended
