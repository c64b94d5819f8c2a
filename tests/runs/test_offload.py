"""A run whose trainer leaves its memory while engines generate is the run that it would have been."""

import pytest
from safetensors.torch import load_file

from rlcore.telemetry.metrics import read_metrics

SHARED = ["cluster.colocate=true", "train.threads=1"]
ALONE = ["train.threads=1"]


def weights(world, name):
    return load_file(world.folder / name / "hf/model.safetensors")


def assert_same(world, name, expected):
    ours, theirs = weights(world, name), weights(world, expected)
    assert all(ours[key].equal(tensor) for key, tensor in theirs.items())


def test_a_run_with_evaluation_reference_and_checkpoints_is_the_same(world):
    options = ["algorithm.kl.loss_coefficient=0.1", "train.updates_per_rollout=2", "checkpoints.every=2"]
    options += ["checkpoints.asynchronous=true", "checkpoints.hf_every=2"]
    assert world.train("alone", *options, *ALONE) == 0
    assert world.train("shared", *options, *SHARED) == 0
    assert world.rows("shared") == world.rows("alone")
    assert_same(world, "shared", "alone")
    row = read_metrics(world.folder / "shared/metrics.jsonl")[-1]
    assert row["time/handover"] > 0
    assert row["memory/offloaded_gb"] > 0
    assert world.train("shared", *options, *SHARED, "train.steps=4", flags=["--resume"]) == 0
    assert world.train("alone", *options, *ALONE, "train.steps=4", flags=["--resume"]) == 0
    assert world.rows("shared") == world.rows("alone")
