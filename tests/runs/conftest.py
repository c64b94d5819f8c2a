"""A small world to run in: a tiny model, a few additions, and the command line in this process."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from rlcore_glm4.demo import DEMO

from rlcore.cli.main import main
from rlcore.telemetry.metrics import read_metrics

RECIPE = """\
base: glm4/tiny
name: small
model: {{checkpoint: {world}/model}}
data: {{path: {world}/train.jsonl}}
sft: {{data: {{path: {world}/warm_start.jsonl}}, steps: 6, batch_size: 8}}
rollout: {{prompts_per_step: 4, samples_per_prompt: 4, max_response_tokens: 6, local: {{concurrency: 8}}}}
rewards: [{{use: digits, concurrency: 1}}]
train: {{steps: 3}}
optimizer: {{lr: 1.0e-3, warmup_steps: 0, schedule: constant}}
eval:
  every: 2
  datasets:
    - {{name: held_out, path: "{world}/held_out.jsonl@[0:6]", samples_per_prompt: 2, max_response_tokens: 6}}
"""


@dataclass
class World:
    """Runs commands on one recipe; every run gets a folder of its own under `folder`."""

    folder: Path
    recipe: Path

    def rlcore(self, command, name, *overrides, flags=()):
        """Run a command of this recipe in folder NAME and return its exit status."""
        sets = [part for override in overrides for part in ("--set", override)]
        return main([command, str(self.recipe), "--run-dir", str(self.folder / name), "--quiet", *sets, *flags])

    def train(self, name, *overrides, flags=()):
        return self.rlcore("train", name, *overrides, flags=flags)

    def train_only(self, name, *overrides, flags=()):
        """Train without any evaluation."""
        return self.train(name, "eval.datasets=[]", "eval.every=null", *overrides, flags=flags)

    def rows(self, name):
        """The metrics of a run without what a clock or a scale measured."""
        rows = read_metrics(self.folder / name / "metrics.jsonl")
        measured = ("time", "tokens/per_second", "perf/", "memory/", "sync/", "attempt")
        return [{key: row[key] for key in row if not key.startswith(measured)} for row in rows]


@pytest.fixture(scope="session")
def materials(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    DEMO.write(folder)
    return folder


@pytest.fixture
def world(materials, tmp_path, outside_rewards):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE.format(world=materials))
    return World(tmp_path, recipe)


@pytest.fixture
def outside_rewards(distribution):
    """Rewards that are easy to earn, and rewards that misbehave in the second step."""
    names = ("digits", "raises", "hangs", "nan")
    entry_points = "[rlcore.rewards]\n" + "".join(f"{name} = test_rewards_of_runs:{name}\n" for name in names)
    distribution("rewards-of-tests", entry_points, test_rewards_of_runs=REWARDS)


REWARDS = """
import time

from rlcore.plugin import Sample, reward


def is_bad(sample: Sample) -> bool:
    return sample.group >= 4 and sample.index == 1


@reward
def digits(sample: Sample) -> float:
    return sum(letter in "13579" for letter in sample.response) / 6


@reward
def raises(sample: Sample) -> float:
    if is_bad(sample):
        raise ValueError("cannot read this")
    return float(sample.index)


@reward
def hangs(sample: Sample) -> float:
    if is_bad(sample):
        time.sleep(600)
    return float(sample.index)


@reward
def nan(sample: Sample) -> float:
    return float("nan") if is_bad(sample) else float(sample.index)
"""
