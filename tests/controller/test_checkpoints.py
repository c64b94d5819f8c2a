import errno
from pathlib import Path

import pytest

from rlcore.config.schema import Checkpoints
from rlcore.controller.checkpoints import STATE, CheckpointStore, RunState, newest_checkpoint
from rlcore.controller.manifest import MANIFEST
from rlcore.errors import RlcoreError, fail


class Weights:
    """Saves a file, at once or when told to; `error` comes instead."""

    def __init__(self, error=None):
        self.error = error
        self.open = None

    def save(self, folder):
        folder.mkdir()
        if self.error:
            raise self.error
        (folder / "weights").write_text("w" * 100)

    def start_saving(self, folder):
        self.open = folder

    def is_saving(self):
        return self.open is not None

    def let_go_on(self):
        folder, self.open = self.open, None
        self.save(folder)

    def finish_saving(self):
        if self.open:
            self.let_go_on()


def state(step):
    return RunState(step, {"served": step})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def save_steps(folder, steps, **settings):
    store = CheckpointStore(folder, Checkpoints(**settings), Weights())
    for step in steps:
        store.save(state(step))
    return names(folder)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    assert save_steps(tmp_path, [1, 2, 3, 4], keep_last=2) == ["step-000003", "step-000004"]


def test_a_damaged_one_that_a_resume_went_behind_costs_no_sound_one(tmp_path):
    assert save_steps(tmp_path, [3], keep_last=1) == ["step-000003"]
    assert save_steps(tmp_path, [2], keep_last=1) == ["step-000002"]


def test_every_nth_checkpoint_is_kept_for_good(tmp_path):
    assert save_steps(tmp_path, [2, 3, 4, 5], keep_last=1, keep_every=2) == [
        "step-000002",
        "step-000004",
        "step-000005",
    ]


def test_the_newest_checkpoint_brings_back_step_and_prompt_source(tmp_path):
    save_steps(tmp_path, [1, 2])
    (place, state), skipped = newest_checkpoint(tmp_path)
    assert (place.name, state, skipped) == ("step-000002", RunState(2, {"served": 2}), [])


def test_a_checkpoint_that_was_never_finished_is_skipped_and_named(tmp_path):
    save_steps(tmp_path, [1])
    (tmp_path / "step-000002.unfinished").mkdir()
    (place, _), skipped = newest_checkpoint(tmp_path)
    assert place.name == "step-000001"
    assert "step-000002" in skipped[0]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def overwrite_end(path):
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (Path.unlink, "trainer/weights is missing"),
        (truncate, "99 bytes instead of 100"),
        (overwrite_end, "another content"),
    ],
)
def test_a_torn_checkpoint_is_skipped_and_the_reason_named(tmp_path, harm, reason):
    save_steps(tmp_path, [1, 2])
    harm(tmp_path / "step-000002/trainer/weights")
    (place, _), skipped = newest_checkpoint(tmp_path)
    assert place.name == "step-000001"
    assert "step-000002 is damaged" in skipped[0]
    assert reason in skipped[0]


def test_a_checkpoint_without_its_list_of_files_is_skipped(tmp_path):
    save_steps(tmp_path, [1])
    (tmp_path / "step-000001" / MANIFEST).unlink()
    found, skipped = newest_checkpoint(tmp_path)
    assert found is None
    assert MANIFEST in skipped[0]


def test_the_step_of_a_damaged_checkpoint_is_saved_again_when_it_is_done_again(tmp_path):
    save_steps(tmp_path, [1, 2])
    (tmp_path / "step-000002" / STATE).write_text("{")
    save_steps(tmp_path, [2])
    (place, _), skipped = newest_checkpoint(tmp_path)
    assert (place.name, skipped) == ("step-000002", [])


def test_what_an_attempt_left_that_died_in_a_save_is_removed_by_the_next_save(tmp_path):
    (tmp_path / "step-000007.unfinished").mkdir()
    assert save_steps(tmp_path, [1]) == ["step-000001"]


def test_a_step_is_saved_once(tmp_path):
    store = CheckpointStore(tmp_path, Checkpoints(), Weights())
    assert store.save(state(1)) == [tmp_path / "step-000001"]
    assert store.save(state(1)) == []


def test_files_of_the_run_are_part_of_every_checkpoint(tmp_path):
    lock = tmp_path / "plugins.lock.json"
    lock.write_text("{}")
    store = CheckpointStore(tmp_path / "checkpoints", Checkpoints(), Weights(), [lock])
    (place,) = store.save(state(1))
    assert names(place) == [MANIFEST, "plugins.lock.json", STATE, "trainer"]


FULL = "No space left on device"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, FULL), fail("rank 1", FULL, "make room")])
def test_a_failed_write_leaves_nothing_but_the_checkpoints_before(tmp_path, error):
    save_steps(tmp_path, [1])
    store = CheckpointStore(tmp_path, Checkpoints(), Weights(error))
    with pytest.raises(RlcoreError, match=rf"{FULL}\n.*make room"):
        store.save(state(2))
    assert names(tmp_path) == ["step-000001"]
    assert newest_checkpoint(tmp_path) == ((tmp_path / "step-000001", state(1)), [])


def in_background(folder, weights):
    return CheckpointStore(folder, Checkpoints(asynchronous=True), weights)


def test_what_is_written_in_the_background_is_published_when_it_is_all_there(tmp_path):
    weights = Weights()
    store = in_background(tmp_path, weights)
    assert store.begin(state(1)) == []
    assert store.poll() == []
    assert newest_checkpoint(tmp_path)[0] is None
    weights.let_go_on()
    assert store.poll() == [tmp_path / "step-000001"]
    assert store.poll() == []


def test_a_save_waits_for_the_one_before(tmp_path):
    store = in_background(tmp_path, Weights())
    store.begin(state(1))
    assert store.begin(state(2)) == [tmp_path / "step-000001"]
    assert store.save(state(2)) == [tmp_path / "step-000002"]


def test_a_run_that_dies_while_it_saves_has_the_checkpoint_before(tmp_path):
    save_steps(tmp_path, [1])
    in_background(tmp_path, Weights()).begin(state(2))
    (place, _), skipped = newest_checkpoint(tmp_path)
    assert (place.name, skipped) == ("step-000001", ["step-000002.unfinished was never finished"])


def test_a_write_that_fails_in_the_background_is_told_at_the_next_look(tmp_path):
    store = in_background(tmp_path, Weights(fail("rank 1", "disk full")))
    store.begin(state(1))
    with pytest.raises(RlcoreError, match="disk full"):
        store.finish()
    assert names(tmp_path) == []


def test_an_interrupted_save_may_be_made_again(tmp_path):
    weights = Weights(KeyboardInterrupt())
    store = CheckpointStore(tmp_path, Checkpoints(), weights)
    with pytest.raises(KeyboardInterrupt):
        store.save(state(1))
    weights.error = None
    assert store.save(state(1)) == [tmp_path / "step-000001"]
