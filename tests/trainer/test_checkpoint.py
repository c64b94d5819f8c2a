"""Checkpoints on two ranks. About 20 s; `make test-kill` moves states between all layouts."""

import subprocess
import sys
from pathlib import Path

RESHARD = Path(__file__).parents[1] / "kill/reshard.py"


def test_states_of_one_layout_go_on_in_another_and_come_back_as_they_were():
    chosen = ["DP1", "PP2xVPP2", "EP2", "--family", "GLM-4", "Megatron MoE"]
    done = subprocess.run([sys.executable, "-W", "ignore", RESHARD, *chosen], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout
    *rows, last = done.stdout.splitlines()
    assert (len(rows), last) == (4, "pairs that do not hold: 0")
