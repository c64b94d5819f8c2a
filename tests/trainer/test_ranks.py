"""The trainer on two or three ranks against one process. About 15 s: every layout runs once, in one program."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PARALLEL = (
    "DP2",
    "TP2",
    "CP2",
    "PP2",
    "PP2xVPP2",
    "late sends",
    "stages of 1 and 3 layers",
    "a free-form layout",
    "PP3",
)
# What says how micro-batches were laid out, not what they gave.
LAYOUT = ("micro_batches", "pack/token_fill", "pack/lockstep_over_ideal", "pack/makespan_over_ideal")


@pytest.fixture(scope="session")
def results():
    program = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("on_ranks.py"))]
    return json.loads(subprocess.run(program, stdout=subprocess.PIPE, check=True, text=True).stdout)


@pytest.fixture
def alone(results):
    return results["one process"][0]


def merged(ranks, name):
    """Every sample's log-probs, each from the one rank that reports it."""
    reported = [index for rank in ranks for index in rank[name]]
    assert len(reported) == len(set(reported))
    return {index: log_probs for rank in ranks for index, log_probs in rank[name].items()}


def without_layout(metrics):
    """Metrics that no layout may change; how experts are loaded is among them, for padding does not count."""
    return {name: v for name, v in metrics.items() if name not in LAYOUT}


@pytest.mark.parametrize("layout", PARALLEL)
def test_each_sample_is_scored_by_one_rank_as_by_one_process(results, alone, layout):
    scored = merged(results[layout], "log_probs")
    assert scored.keys() == alone["log_probs"].keys()
    for index, log_probs in scored.items():
        assert log_probs == pytest.approx(alone["log_probs"][index], abs=5e-6)


@pytest.mark.parametrize("layout", PARALLEL)
def test_steps_are_those_of_one_process(results, alone, layout):
    for ours, theirs in zip(results[layout][0]["steps"], alone["steps"], strict=True):
        assert without_layout(ours) == pytest.approx(without_layout(theirs), rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("layout", PARALLEL)
def test_losses_of_routers_weigh_as_much_as_in_one_process(results, alone, layout):
    ours, theirs = results[layout][0]["losses of routers"], alone["losses of routers"]
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-5)


@pytest.mark.parametrize("layout", PARALLEL)
def test_every_rank_returns_the_same_metrics(results, layout):
    first, *others = results[layout]
    for rank in others:
        assert rank["steps"] == first["steps"]
        assert rank["one sample"] == first["one sample"]


@pytest.mark.parametrize("layout", PARALLEL)
def test_the_reference_is_where_training_began(results, alone, layout):
    for index, log_probs in merged(results[layout], "reference").items():
        assert log_probs == pytest.approx(alone["log_probs"][index], abs=5e-6)


@pytest.mark.parametrize("layout", PARALLEL)
def test_a_bad_sample_is_seen_and_named_by_every_rank(results, layout):
    for rank in results[layout]:
        assert rank["left out"] == 1.0
        assert "optimizer step 3: loss nan" in rank["refused"]
        assert "from sample 0\n" in rank["refused"]


@pytest.mark.parametrize("layout", PARALLEL)
def test_ranks_without_a_sample_take_part(results, alone, layout):
    ours, theirs = results[layout][0]["one sample"], alone["one sample"]
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    assert ours["tokens"] == theirs["tokens"]


def test_interleaved_stages_get_as_many_micro_batches_as_they_need(results):
    assert results["PP2xVPP2"][0]["one sample"]["micro_batches"] == 2
    assert results["PP2xVPP2"][0]["steps"][0]["micro_batches"] % 2 == 0


def test_how_steps_were_laid_out_is_reported(results):
    metrics = results["DP2"][0]["steps"][0]
    assert 0 < metrics["pack/token_fill"] <= 1
    assert 1 <= metrics["pack/makespan_over_ideal"] <= metrics["pack/lockstep_over_ideal"]
