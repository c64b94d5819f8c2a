"""A run on two ranks: it learns like one process, says which rank has died, and goes on from its checkpoint."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlcore.telemetry.memory import descendants

TWO = ["parallel.dp=2", "checkpoints.every=2", "checkpoints.hf=false", "eval.datasets=[]", "eval.every=null"]


def ranks(pid):
    """Processes of the ranks of a run, by their names."""
    names = {child: Path(f"/proc/{child}/cmdline").read_text() for child in descendants(pid)}
    return [child for child, name in names.items() if name.startswith("ray::Worker")]


def test_a_rank_that_dies_ends_the_run_which_goes_on_and_learns_like_one_process(world, ends):
    run = world.folder / "two"
    command = [sys.executable, "-m", "rlcore.cli.main", "train", world.recipe, "--run-dir", run, "--quiet"]
    sets = [f"--set={override}" for override in [*TWO, "train.steps=1000"]]
    process = subprocess.Popen([*command, *sets], stderr=subprocess.PIPE, text=True)
    while not (run / "checkpoints/step-000002/state.json").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    first, second = ranks(process.pid)
    os.kill(second, signal.SIGKILL)
    _, message = process.communicate()
    assert process.returncode == 1
    assert f"(pid {second}): its process ended" in message
    assert f"rlcore train --resume --run-dir {run}" in message
    assert "Traceback" not in message
    assert ends(first)
    assert (run / "logs/trainer-0.log").exists()

    saved = int(sorted(run.glob("checkpoints/step-*"))[-1].name.removeprefix("step-"))
    assert world.train("two", *TWO, f"train.steps={saved + 1}", flags=["--resume"]) == 0
    assert world.train_only("one", "train.steps=2") == 0
    for row, expected in zip(world.rows("two"), world.rows("one"), strict=False):
        for name in ("loss", "grad_norm", "entropy", "reward/mean"):
            assert row[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name
