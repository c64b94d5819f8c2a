"""However a run ends, what is done is saved and the way on is said."""

import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from rlcore.telemetry.metrics import read_metrics


def steps(world, name):
    return [row["step"] for row in read_metrics(world.folder / name / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize(
    ("reward", "cause"), [("raises", "cannot read this"), ("hangs", "1 s"), ("nan", "nan")]
)
def test_a_failing_reward_stops_the_run_and_names_the_sample(world, capsys, reward, cause):
    timeout = "timeout: 1.0, " if reward == "hangs" else ""
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


def test_an_evaluation_that_a_run_died_before_is_made_up_for(world):
    world.train("run", "train.steps=2")
    rows = world.rows("run")
    metrics = world.folder / "run/metrics.jsonl"
    kept = [line for line in metrics.read_text().splitlines(True) if "eval/" not in line or '"step": 0' in line]
    metrics.write_text("".join(kept))
    assert world.rows("run") != rows
    assert world.train("run", "train.steps=2", flags=["--resume"]) == 0
    assert world.rows("run") == rows


def test_a_finished_run_measures_nothing_twice(world):
    world.train("run", "train.steps=1")
    before = (world.folder / "run/metrics.jsonl").read_text()
    assert world.train("run", "train.steps=1", flags=["--resume"]) == 0
    assert (world.folder / "run/metrics.jsonl").read_text() == before


# Evaluates at every second step, and cuts responses short that the next step goes on with.
LONG = [
    "checkpoints.every=1",
    "rollout.over_sampling_prompts=6",
    "rollout.partial=true",
    "eval.datasets.0.samples_per_prompt=1",
]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda sent: sent.name)
def test_a_run_that_is_ended_at_any_moment_goes_on_as_if_it_never_was(world, sent):
    run = world.folder / "parts"
    command = [sys.executable, "-m", "rlcore.cli.main", "train", world.recipe, "--run-dir", run, "--quiet"]
    sets = [f"--set={override}" for override in [*LONG, "train.steps=1000"]]
    process = subprocess.Popen([*command, *sets], stderr=subprocess.PIPE, text=True)
    while not (run / "checkpoints/step-000002/state.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(sent)
    _, message = process.communicate()
    if sent == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, message
        assert f"rlcore train --resume --run-dir {run}" in message
    done = steps(world, "parts")[-1]
    assert world.train("parts", *LONG, f"train.steps={done + 3}", flags=["--resume"]) == 0
    assert world.train("whole", *LONG, f"train.steps={done + 3}") == 0
    assert world.rows("parts") == world.rows("whole")
    whole, parts = weights(world, "whole"), weights(world, "parts")
    assert all(whole[name].equal(parts[name]) for name in whole)


def weights(world, name):
    return load_file(world.folder / name / "hf/model.safetensors")


def test_a_run_that_saves_in_the_background_passes_over_a_torn_checkpoint_and_says_so(world, capsys):
    saving = [f"checkpoints.{key}" for key in ("every=1", "keep_last=2", "asynchronous=true", "hf_every=2")]
    world.train_only("whole", *saving)
    world.train_only("run", *saving)
    halfway = load_file(world.folder / "whole/hf-000002/model.safetensors")
    assert halfway.keys() == weights(world, "whole").keys()
    (torn,) = (world.folder / "run/checkpoints/step-000003/trainer").glob("*.distcp")
    torn.write_bytes(torn.read_bytes()[:-100])
    assert world.train_only("run", *saving, flags=["--resume"]) == 0
    said = capsys.readouterr().out
    assert f"skipped checkpoint: step-000003 is damaged: trainer/{torn.name} has" in said
    assert "resuming after step 2" in said
    assert world.rows("run") == world.rows("whole")
    whole, again = weights(world, "whole"), weights(world, "run")
    assert all(whole[name].equal(again[name]) for name in whole)


def test_a_full_disk_ends_a_run_with_what_was_saved_before(world, capsys, full_disk):
    world.train_only("run", "train.steps=1")
    with full_disk(200_000):
        assert world.train_only("run", "train.steps=2", flags=["--resume"]) == 1
    message = capsys.readouterr().err
    assert "make room" in message
    assert "rlcore train --resume --run-dir" in message
    assert [place.name for place in (world.folder / "run/checkpoints").iterdir()] == ["step-000001"]
    assert world.train_only("run", "train.steps=2", flags=["--resume"]) == 0
    assert steps(world, "run") == [1, 2]


def test_a_resume_that_cannot_load_its_checkpoint_leaves_the_run_as_it_was(world, capsys):
    world.train_only("run", "train.steps=1")
    (states,) = (world.folder / "run/checkpoints/step-000001/trainer").glob("*.distcp")
    content = states.read_bytes()
    kept = 2**16  # The manifest knows both ends.
    states.write_bytes(content[:kept] + bytes(len(content) - 2 * kept) + content[-kept:])
    recipe = (world.folder / "run/config.resolved.yaml").read_text()
    assert world.train_only("run", "train.steps=2", flags=["--resume"]) == 1
    assert "does not fit the model, or is damaged" in capsys.readouterr().err
    assert (world.folder / "run/config.resolved.yaml").read_text() == recipe
