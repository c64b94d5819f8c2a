"""Checkpoints that two ranks read and write, against one process. About 10 s: every layout runs once."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

LAYOUTS = (
    "dense TP2",
    "dense PP2",
    "dense PP2xVPP2",
    "dense DP2",
    "tied PP2",
    "one key head TP2",
    "experts EP2",
    "experts TP2xEP2",
    "experts TP2xETP2",
    "experts PP2",
)


@pytest.fixture(scope="session")
def results():
    program = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("on_ranks.py"))]
    return json.loads(subprocess.run(program, stdout=subprocess.PIPE, check=True, text=True).stdout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_exported_is_what_was_loaded_bit_for_bit(results, layout):
    assert results[layout][0]["differing"] == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rank_0_alone_is_given_values_and_all_know_names_and_shapes(results, layout):
    first, second = results[layout]
    assert first["shapes"] == second["shapes"]
    assert first["values"] == len(first["shapes"])
    assert second["values"] == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_saved_checkpoint_is_that_of_one_process_byte_for_byte(results, layout):
    assert results[layout][0]["same files"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_rank_waits_in_a_collective_while_many_files_are_written(results, layout):
    for rank in results[layout]:
        assert len(rank["written"]) >= 2
        # Files that are complete when the rank has sent one more file's worth of tensors.
        assert all(files >= sent - 1 for sent, files in enumerate(rank["written"]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_reads_what_it_holds_and_nothing_else(results, layout):
    for rank in results[layout]:
        assert rank["read"] == rank["held"] - rank["padding"]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if "DP" not in layout])
def test_no_rank_holds_the_whole_model(results, layout):
    whole = sum(math.prod(shape) for _, shape, _ in results[layout][0]["shapes"])
    assert all(rank["held"] < 0.8 * whole for rank in results[layout])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_ranks_learn_why_nothing_was_saved(results, layout):
    for rank in results[layout]:
        assert "exists already" in rank["refused"]
        assert "cannot be written" in rank["no room"]
