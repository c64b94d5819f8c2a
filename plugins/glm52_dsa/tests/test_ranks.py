"""Engine and trainer compared where ranks share layers, tokens or heads. One program runs every layout once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def results():
    program = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("on_ranks.py"))]
    return json.loads(subprocess.run(program, stdout=subprocess.PIPE, check=True, text=True).stdout)


def test_a_checkpoint_goes_on_with_other_tensor_parallel_ranks(results):
    assert results["moved"]["equal"]


@pytest.mark.parametrize("layout", ["TP2", "CP2", "PP2"])
def test_the_selections_of_all_ranks_together_are_the_engines(results, layout):
    metrics = results[layout]
    assert metrics["micro_batches"] > 1
    assert metrics["dsa/selection_flips"] <= 0.005
    assert 0 < metrics["logprob_gap/max"] <= 1e-5
