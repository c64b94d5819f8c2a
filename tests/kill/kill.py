"""Kills a run again and again, and resumes it: its metrics and weights must be those of a run left alone.

`python tests/kill/kill.py [KILLS]` does so on one process, whose saves are waited for, on two ranks, which
save in the background, and on a run that generates one step ahead; each gets its part of the kills. What an
asynchronous run is made of depends on the clock: there, every prompt must have been trained once, and in time.
Victims (`kill -9` of the controller or of a rank) and moments (in a rollout, in training or in a save, plus a
random delay) follow from a seed, which is printed. Exits with 1 where anything differs.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rlcore_glm4.demo import DEMO
from safetensors.torch import load_file

from rlcore.telemetry.memory import descendants
from rlcore.telemetry.metrics import read_metrics
from rlcore.telemetry.rollouts import TRAINING, read_samples, sample_files

RECIPE = """\
base: glm4/tiny
model: {{checkpoint: {world}/model}}
data: {{path: {world}/train.jsonl}}
sft: {{data: {{path: {world}/warm_start.jsonl}}}}
rollout:
  prompts_per_step: 4
  samples_per_prompt: 4
  over_sampling_prompts: 6
  partial: true
  max_response_tokens: 24
  local: {{concurrency: 8}}
# Untrained models earn nothing: the entropy's gradient is what they learn from.
algorithm: {{entropy_coefficient: 0.1}}
train: {{threads: 1}}
optimizer: {{lr: 1.0e-3, warmup_steps: 2, schedule: cosine}}
eval: {{datasets: [], every: null, before_train: false}}
checkpoints: {{every: 1}}
"""
WORLDS = {
    "one process": [],
    "two ranks": ["parallel.dp=2", "checkpoints.asynchronous=true"],
    "one step ahead": ["rollout.mode=one_step"],
    "asynchronous": [
        "rollout.mode=async",
        "rollout.max_staleness=2",
        "rollout.over_sampling_prompts=null",
        "rollout.partial=false",
    ],
}
PROMPTS, STALENESS = 4, 2
# What a clock or a scale measured.
MEASURED = ("time", "tokens/per_second", "perf/", "memory/", "sync/", "attempt")
PHASES = ("rollout", "training", "save")
PATIENCE = 120.0
NOTHING = (0, 0)


@dataclass
class Run:
    """A run folder and the command that starts or resumes it."""

    folder: Path
    recipe: Path
    overrides: Sequence[str]

    def start(self) -> "subprocess.Popen[bytes]":
        resume = ["--resume"] if (self.folder / "events.jsonl").exists() else []
        sets = [f"--set={override}" for override in self.overrides]
        command = [
            sys.executable,
            "-m",
            "rlcore.cli.main",
            "train",
            str(self.recipe),
            "--quiet",
            *resume,
            *sets,
        ]
        with self.folder.with_suffix(".log").open("ab") as log:
            return subprocess.Popen([*command, "--run-dir", str(self.folder)], stdout=log, stderr=log)

    def finish(self) -> None:
        process = self.start()
        if process.wait(10 * PATIENCE):
            raise SystemExit(f"the run failed:\n{self.folder.with_suffix('.log').read_text()}")

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows = read_metrics(self.folder / "metrics.jsonl")
        return [{key: row[key] for key in row if not key.startswith(MEASURED)} for row in rows]

    @property
    def weights(self) -> dict[str, Any]:
        return load_file(self.folder / "hf/model.safetensors")

    @property
    def done(self) -> int:
        """Steps with metrics, whoever made them."""
        return len(self.rows) if (self.folder / "metrics.jsonl").exists() else 0

    def moment(self, phase: str, step: int) -> Callable[[], bool]:
        """Tells whether this step's phase has begun in an attempt that starts now, by what is in the folder."""
        checkpoint = self.folder / f"checkpoints/step-{step:06d}"
        signs = {
            # A row of metrics ends a step: what follows it is the next one's rollout.
            "rollout": [self.folder / "metrics.jsonl"],
            "training": [self.folder / f"rollouts/{TRAINING}-{step:06d}.jsonl"],
            "save": [checkpoint.with_suffix(".unfinished"), checkpoint],
        }[phase]
        before = {sign: identity(sign) for sign in signs}
        return lambda: any(identity(sign) not in (NOTHING, before[sign]) for sign in signs)


def identity(path: Path) -> tuple[int, int]:
    """Changes when a path is made anew or grows."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return NOTHING
    return (status.st_ino, status.st_size) if status.st_size else NOTHING


def kill_once(run: Run, phase: str, step: int, is_rank: bool, delay: float) -> str:
    """Start the run, and kill the controller or a rank at the moment; return what was done, in words."""
    has_come, process = run.moment(phase, step), run.start()
    deadline = time.monotonic() + PATIENCE
    while not has_come():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise SystemExit(f"no kill in {phase} {step}:\n{run.folder.with_suffix('.log').read_text()}")
        time.sleep(0.001)
    time.sleep(delay)
    family = descendants(process.pid)
    ranks = [pid for pid in family if is_named(pid, "ray::Worker")]
    victim = random.choice(ranks) if is_rank and ranks else process.pid
    os.kill(victim, signal.SIGKILL)
    process.wait(PATIENCE)
    wait_for_the_end(family)
    who = "a rank" if victim in ranks else "the controller"
    return f"killed {who} in {phase} {step}, after {1000 * delay:.0f} ms; {run.done} steps have metrics"


def is_named(pid: int, name: str) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().startswith(name)
    except OSError:
        return False


def wait_for_the_end(pids: Sequence[int]) -> None:
    """Nothing of a dead run may live on: it would write where the next attempt writes."""
    deadline = time.monotonic() + PATIENCE
    while living := [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]:
        if time.monotonic() > deadline:
            raise SystemExit(f"processes {living} outlived their run")
        time.sleep(0.02)


def differences(run: Run, whole: Run) -> list[str]:
    """How a run differs from one left alone."""
    pairs = zip_longest(run.rows, whole.rows, fillvalue={})
    rows = [
        f"step {theirs.get('step')}: {name} is {ours.get(name)}, not {theirs.get(name)}"
        for ours, theirs in pairs
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    ours, theirs = run.weights, whole.weights
    return rows + [f"{name} differs" for name in theirs if not theirs[name].equal(ours[name])]


def misfits(run: Run) -> list[str]:
    """What an asynchronous run has trained amiss: each step takes the next prompts."""
    found = []
    for step, path in sample_files(run.folder / "rollouts", TRAINING).items():
        samples = read_samples(path)
        groups = list(dict.fromkeys(sample.group for sample in samples))
        if groups != list(range(PROMPTS * (step - 1), PROMPTS * step)):
            found.append(f"step {step} trained prompts {groups}")
        if old := {
            version for sample in samples for version in sample.versions if version < step - 1 - STALENESS
        }:
            found.append(f"step {step} trained tokens of versions {sorted(old)}")
    return found


def torture(name: str, kills: int, world: Path, recipe: Path) -> bool:
    overrides = [*WORLDS[name], f"train.steps={2 * kills + 3}"]
    whole, run = (
        Run(world / f"{name} {kind}".replace(" ", "-"), recipe, overrides) for kind in ("whole", "killed")
    )
    is_clocked = name == "asynchronous"
    if not is_clocked:
        whole.finish()
    first = random.randrange(len(PHASES))
    for number in range(kills):
        step = run.done + 1
        is_rank = name == "two ranks" and number % 2 == 0
        phase = PHASES[(number + first) % len(PHASES)]
        print(f"{name}: {kill_once(run, phase, step, is_rank, random.uniform(0, 0.1))}", flush=True)
    run.finish()
    found = misfits(run) if is_clocked else differences(run, whole)
    print(f"{name}: {len(found)} differences after {kills} kills", *found[:20], sep="\n    ", flush=True)
    return not found


def main(kills: int) -> int:
    seed = random.randrange(10**6)
    random.seed(seed)
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        DEMO.write(world)
        recipe = world / "recipe.yaml"
        recipe.write_text(RECIPE.format(world=world))
        parts = [kills // len(WORLDS) + (i < kills % len(WORLDS)) for i in range(len(WORLDS))]
        good = [torture(*one, world, recipe) for one in zip(WORLDS, parts, strict=True)]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
