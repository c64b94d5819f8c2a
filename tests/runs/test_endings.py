"""However a run ends, what is done is saved and the way on is said."""

import signal
import subprocess
import sys
import time

import pytest

from rlcore.telemetry.metrics import read_metrics


def steps(world, name):
    return [row["step"] for row in read_metrics(world.folder / name / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize(
    ("reward", "cause"), [("raises", "cannot read this"), ("hangs", "0.5 s"), ("nan", "nan")]
)
def test_a_failing_reward_stops_the_run_and_names_the_sample(world, capsys, reward, cause):
    timeout = "timeout: 0.5, " if reward == "hangs" else ""
    assert world.train_only("run", f"rewards=[{{{timeout}use: {reward}}}]") == 1
    message = capsys.readouterr().err
    assert "sample 1 of" in message
    assert cause in message
    assert "rlcore train --resume --run-dir" in message
    assert "Traceback" not in message
    assert (world.folder / "run/checkpoints/step-000001/state.json").is_file()


def test_a_failing_reward_may_count_as_zero(world):
    assert world.train_only("run", "rewards=[{use: raises, on_error: zero}]", "train.steps=2") == 0
    first, second = read_metrics(world.folder / "run/metrics.jsonl")
    assert first["reward/mean"] == (0 + 1 + 2 + 3) / 4
    assert second["reward/mean"] == (0 + 0 + 2 + 3) / 4


def test_a_failing_reward_may_drop_its_group(world, capsys):
    assert world.train_only("run", "rewards=[{use: raises, on_error: drop}]") == 1
    assert "reward_error" in capsys.readouterr().err


def test_the_run_goes_on_when_the_reward_is_mended(world):
    world.train_only("run", "rewards=[raises]")
    assert world.train_only("run", flags=["--resume", "--accept-plugin-changes"]) == 0
    assert steps(world, "run") == [1, 2, 3]


def test_ctrl_c_saves_and_the_resumed_run_equals_an_uninterrupted_one(world):
    overrides = ["train.steps=60", "checkpoints.hf=false"]
    world.train_only("whole", *overrides)
    run = world.folder / "parts"
    command = [sys.executable, "-m", "rlcore.cli.main", "train", world.recipe, "--run-dir", run, "--quiet"]
    sets = [f"--set={override}" for override in ("eval.datasets=[]", "eval.every=null", *overrides)]
    process = subprocess.Popen([*command, *sets], stderr=subprocess.PIPE, text=True)
    while not (run / "rollouts/step-000003.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate()
    assert process.returncode == 130, message
    assert f"rlcore train --resume --run-dir {run}" in message
    assert steps(world, "parts")[-1] < 60
    assert world.train_only("parts", *overrides, flags=["--resume"]) == 0
    assert world.rows("parts") == world.rows("whole")
