"""Runs whose generation goes ahead of training: versions, conservation of samples, and the ways they end."""

import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from rlcore.telemetry.metrics import read_metrics
from rlcore.telemetry.rollouts import TRAINING, read_samples, sample_files

MODES = ["one_step", "async"]
# Long responses of few prompts: there is always something in flight.
BUSY = ["rollout.max_response_tokens=24", "rollout.prompts_per_step=2", "algorithm.entropy_coefficient=0.1"]
PROMPTS = 2


def trained(world, name):
    """The samples that each step trained, by step."""
    files = sample_files(world.folder / name / "rollouts", TRAINING)
    return {step: read_samples(path) for step, path in files.items()}


def groups(samples):
    return list(dict.fromkeys(sample.group for sample in samples))


def weights(world, name):
    return load_file(world.folder / name / "hf/model.safetensors")


def assert_each_group_was_trained_once(world, name, steps):
    """Without filters, step after step takes the next prompts."""
    found = trained(world, name)
    assert [groups(found[step]) for step in sorted(found)] == [
        list(range(PROMPTS * (step - 1), PROMPTS * step)) for step in range(1, steps + 1)
    ]


@pytest.mark.parametrize("mode", MODES)
def test_no_token_is_older_than_the_bound_and_every_group_is_trained_once(world, mode):
    assert world.train_only("run", f"rollout.mode={mode}", "train.steps=4", *BUSY) == 0
    assert_each_group_was_trained_once(world, "run", 4)
    for step, samples in trained(world, "run").items():
        made = [version for sample in samples for version in sample.versions]
        assert max(0, step - 2) <= min(made)
        assert max(made) <= step - 1
        assert all(len(sample.versions) == len(sample.tokens) for sample in samples)
    rows = read_metrics(world.folder / "run/metrics.jsonl")
    assert max(row["rollout/staleness_max"] for row in rows) == 1
    assert max(row.get("logprob_gap/max", 0.0) for row in rows) <= 1e-5
    assert "logprob_gap/max" in rows[0]


def test_a_wider_bound_lets_generation_run_further_ahead(world):
    assert world.train_only("run", "rollout.mode=async", "rollout.max_staleness=3", "train.steps=5", *BUSY) == 0
    assert_each_group_was_trained_once(world, "run", 5)
    staleness = [row["rollout/staleness_max"] for row in read_metrics(world.folder / "run/metrics.jsonl")]
    assert max(staleness) in (2, 3)


def test_without_staleness_asynchronous_is_on_policy(world):
    options = ["rollout.mode=async", "rollout.max_staleness=0", "train.steps=3", *BUSY]
    assert world.train_only("run", *options) == 0
    rows = read_metrics(world.folder / "run/metrics.jsonl")
    assert [row["rollout/staleness_max"] for row in rows] == [0, 0, 0]
    assert max(row["logprob_gap/max"] for row in rows) <= 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_modes_go_with_filters_updates_importance_sampling_and_evaluation(world, mode):
    options = [
        f"rollout.mode={mode}",
        "filters=[nonzero_std]",
        "train.updates_per_rollout=2",
        "algorithm.importance_sampling.enabled=true",
        "eval.every=1",
        "train.threads=1",
        *BUSY,
    ]
    assert world.train("run", *options) == 0
    rows = read_metrics(world.folder / "run/metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all("eval/held_out/pass@1" in row for row in rows)
    assert all(row["importance/ratio"] > 0 for row in rows[1:])
    seen = [(s.group, s.index) for samples in trained(world, "run").values() for s in samples]
    assert len(set(seen)) == len(seen)


def test_one_step_ahead_equals_itself_from_a_checkpoint_on(world):
    """What a checkpoint holds of the next step is trained as if nothing had happened."""
    options = ["rollout.mode=one_step", "train.steps=4", "checkpoints.every=1", "train.threads=1", *BUSY]
    world.train_only("whole", *options)
    world.train_only("parts", *options, "checkpoints.keep_last=4")
    for step in (3, 4):
        torn = world.folder / f"parts/checkpoints/step-{step:06d}/state.json"
        torn.write_text(torn.read_text()[:-1])
    assert world.train_only("parts", *options, flags=["--resume"]) == 0
    assert world.rows("parts") == world.rows("whole")
    whole, parts = weights(world, "whole"), weights(world, "parts")
    assert all(whole[name].equal(parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("mode", "sent"),
    [("one_step", signal.SIGINT), ("async", signal.SIGINT), ("async", signal.SIGKILL)],
)
def test_a_run_that_is_ended_at_any_moment_loses_no_sample_and_trains_none_twice(world, mode, sent):
    run = world.folder / "run"
    options = [f"rollout.mode={mode}", "checkpoints.every=2", *BUSY]
    sets = [f"--set={one}" for one in [*options, "train.steps=1000", "eval.datasets=[]", "eval.every=null"]]
    command = [sys.executable, "-m", "rlcore.cli.main", "train", world.recipe, "--run-dir", run, "--quiet"]
    process = subprocess.Popen([*command, *sets], stderr=subprocess.PIPE, text=True)
    while not (run / "checkpoints/step-000002/state.json").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(sent)
    _, message = process.communicate()
    assert process.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL), message
    steps = len(trained(world, "run")) + 2
    assert world.train_only("run", *options, f"train.steps={steps}", flags=["--resume"]) == 0
    assert_each_group_was_trained_once(world, "run", steps)


def test_what_is_ahead_is_not_lost_when_the_mode_changes(world):
    options = ["checkpoints.every=1", *BUSY]
    for steps, mode in enumerate(["async", "one_step", "sync", "async"], start=2):
        run_on = [f"rollout.mode={mode}", f"train.steps={steps + 1}", *options]
        if (world.folder / "run").exists():
            drop_last_checkpoint(world, "run")
            assert world.train_only("run", *run_on, flags=["--resume"]) == 0
        else:
            assert world.train_only("run", *run_on) == 0
    assert_each_group_was_trained_once(world, "run", 6)


def drop_last_checkpoint(world, name):
    """Nothing is ahead at the end of a run: go back to where something was."""
    last = sorted((world.folder / name / "checkpoints").glob("step-*"))[-1]
    (last / "state.json").write_text("")


def test_a_reward_that_fails_beside_training_leaves_the_step_done(world, capsys):
    options = ["rollout.mode=one_step", "rollout.prompts_per_step=4", "train.steps=3"]
    assert world.train_only("run", "rewards=[raises]", *options) == 1
    assert "cannot read this" in capsys.readouterr().err
    assert (world.folder / "run/checkpoints/step-000001/state.json").is_file()
    assert world.train_only("run", *options, flags=["--resume", "--accept-plugin-changes"]) == 0
    assert [groups(samples) for samples in trained(world, "run").values()] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
