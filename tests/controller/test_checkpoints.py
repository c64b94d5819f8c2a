import json

import pytest

from rlcore.config.schema import Checkpoints
from rlcore.controller.checkpoints import STATE, CheckpointStore, RunState, newest_checkpoint


def write_weights(folder):
    folder.mkdir()
    (folder / "weights").write_text("w")


def save_steps(folder, steps, **settings):
    store = CheckpointStore(folder, Checkpoints(**settings))
    for step in steps:
        store.save(RunState(step, {"served": step}), write_weights)
    return sorted(path.name for path in folder.iterdir())


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    assert save_steps(tmp_path, [1, 2, 3, 4], keep_last=2) == ["step-000003", "step-000004"]


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


def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path):
    save_steps(tmp_path, [1, 2])
    (tmp_path / "step-000002" / STATE).write_text(json.dumps({"step": 2})[:-3])
    (place, _), skipped = newest_checkpoint(tmp_path)
    assert place.name == "step-000001"
    assert "damaged" in skipped[0]


def test_the_step_of_a_damaged_checkpoint_is_saved_again_when_it_is_done_again(tmp_path):
    save_steps(tmp_path, [1, 2])
    (tmp_path / "step-000002" / STATE).write_text("{")
    save_steps(tmp_path, [2])
    (place, _), skipped = newest_checkpoint(tmp_path)
    assert (place.name, skipped) == ("step-000002", [])


def test_a_step_is_saved_once(tmp_path):
    store = CheckpointStore(tmp_path, Checkpoints())
    assert store.save(RunState(1, {}), write_weights) == tmp_path / "step-000001"
    assert store.save(RunState(1, {}), write_weights) is None


def test_a_failed_write_leaves_no_checkpoint(tmp_path):
    def fail(folder):
        folder.mkdir()
        raise OSError("disk full")

    store = CheckpointStore(tmp_path, Checkpoints())
    with pytest.raises(OSError, match="disk full"):
        store.save(RunState(1, {}), fail)
    assert newest_checkpoint(tmp_path)[0] is None
