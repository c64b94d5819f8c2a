"""A run on two nodes of a Ray cluster, real raylets on this machine: one leaves, and the run says which."""

import subprocess
import sys
import time

SETS = [
    "parallel.dp=2",
    "cluster.nodes=2",
    "checkpoints.every=2",
    "checkpoints.hf=false",
    "eval.datasets=[]",
    "eval.every=null",
]


def test_a_node_that_leaves_ends_the_run_by_name_and_its_checkpoints_stay(world, two_nodes):
    run = world.folder / "two"
    command = [sys.executable, "-m", "rlcore.cli.main", "train", world.recipe, "--run-dir", run, "--quiet"]
    sets = [f"--set={one}" for one in [*SETS, "train.steps=1000", f"cluster.address={two_nodes.address}"]]
    process = subprocess.Popen([*command, *sets], stderr=subprocess.PIPE, text=True)
    while not (run / "checkpoints/step-000002/state.json").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    (node,) = two_nodes.worker_nodes
    (raylet,) = node.all_processes["raylet"]
    raylet.process.kill()
    _, message = process.communicate()
    assert process.returncode == 1
    assert f"trainer rank 1 (node {node.node_ip_address}, pid " in message
    assert "its node has left the cluster" in message
    assert f"rlcore train --resume --run-dir {run}" in message
    assert "Traceback" not in message
    assert (run / "logs/trainer-1.log").exists()

    saved = int(sorted(run.glob("checkpoints/step-*"))[-1].name.removeprefix("step-"))
    alone = ["cluster.nodes=1", "parallel.dp=null", f"train.steps={saved + 1}"]
    assert world.train("two", *SETS, *alone, flags=["--resume", "--cluster", "local"]) == 0
    assert world.rows("two")[-1]["step"] == saved + 1
