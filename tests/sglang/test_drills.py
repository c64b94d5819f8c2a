"""Runs whose real servers, routers and ranks are killed or stopped: they go on, or stop and go on from there.

In no case is a prompt trained twice or lost, and every token says by which weights it was made.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from rlcore.cli.main import main
from rlcore.telemetry.events import read_events
from rlcore.telemetry.memory import descendants
from rlcore.telemetry.metrics import read_metrics

SERVER, ROUTER, RANK = "sglang.launch_server", "sglang::router", "ray::Worker"
# Long enough for something to happen meanwhile.
LONG = "rollout.max_response_tokens=48"


class Drill:
    """A run in a process of its own; its servers are those of its world."""

    def __init__(self, recipe, folder, sets):
        self.folder, self._world = folder, recipe.parent
        flags = [word for one in (*sets, LONG) for word in ("--set", one)]
        command = [sys.executable, "-m", "rlcore.cli.main", "train", recipe, "--run-dir", folder, "--quiet"]
        self.process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True)

    @property
    def done(self):
        metrics = self.folder / "metrics.jsonl"
        return len(read_metrics(metrics)) if metrics.exists() else 0

    @property
    def warnings(self):
        events = read_events(self.folder / "events.jsonl")
        return [event["text"] for event in events if event["kind"] == "warning"]

    def until(self, condition):
        while not condition():
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.05)

    def has_warned(self, *words):
        return all(any(word in text for text in self.warnings) for word in words)

    def processes(self, part):
        """The words of each process of this run of which one has this part; Ray's belong to the test."""
        found = {}
        for pid in descendants(os.getpid()):
            with suppress(OSError):  # it has ended meanwhile
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if part in " ".join(words) and (part != SERVER or str(self._world) in " ".join(words)):
                    found[pid] = words
        return found

    def pids(self, part):
        return list(self.processes(part))

    def ask_servers(self, route, body=None):
        """What its servers answer; those that are still starting, or refuse, do not."""
        answers = []
        for words in self.processes(SERVER).values():
            host, port = (words[words.index(flag) + 1] for flag in ("--host", "--port"))
            data = None if body is None else json.dumps(body).encode()
            asked = Request(f"http://{host}:{port}/{route}", data, {"Content-Type": "application/json"})
            with suppress(OSError), urlopen(asked) as answer:
                answers.append(answer.read())
        return answers

    def is_generating(self):
        """Whether one of its servers has requests; each of their tokens takes a while from here on."""
        self.ask_servers("slow_down", {"forward_sleep_time": 0.1})
        loads = [load for answer in self.ask_servers("v1/loads") for load in json.loads(answer)["loads"]]
        return any(load["num_running_reqs"] for load in loads)

    def end_updates(self):
        """Whoever has begun to update its servers is refused from here on."""
        self.ask_servers("end_weight_update", {})

    def end(self):
        """Wait for it; returns what it said at last."""
        _, message = self.process.communicate()
        assert "Traceback" not in message
        return message


@pytest.fixture
def drill(recipe, tmp_path):
    begun = []

    def begin(*sets):
        begun.append(Drill(recipe, tmp_path / "run", sets))
        return begun[-1]

    yield begin
    for run in begun:
        run.process.kill()


def resume(run):
    """Go on for a step, with an engine that is there at once; returns how many steps are done then."""
    steps = run.done + 1
    alone = ["cluster.address=null", "cluster.nodes=1", "parallel.dp=null"]
    local = ["rollout.engine=local", "rollout.num_gpus=0"]
    flags = [word for one in (*alone, *local, f"train.steps={steps}", LONG) for word in ("--set", one)]
    assert main(["train", "--resume", "--run-dir", str(run.folder), "--quiet", *flags]) == 0
    return steps


def test_a_run_one_step_ahead_waits_for_its_only_server_and_stops_where_that_refuses_weights(drill, check_run):
    run = drill("rollout.mode=one_step", "rollout.num_gpus=1", "train.steps=1000", "checkpoints.every=1")
    run.until(lambda: run.done)
    os.kill(run.pids(SERVER)[0], signal.SIGKILL)
    run.until(lambda: run.has_warned("SGLang server lost", "is back"))
    done = run.done
    run.until(lambda: run.done > done + 1)
    while run.process.poll() is None:
        run.end_updates()
    message = run.end()
    assert run.process.returncode == 1
    assert "the SGLang server refuses" in message
    assert f"rlcore train --resume --run-dir {run.folder}" in message
    check_run(run.folder, resume(run), max_staleness=1)


def test_an_asynchronous_run_goes_on_without_a_router_that_hangs_and_a_server_that_is_killed(drill, check_run):
    run = drill("rollout.mode=async", "train.steps=6", "rollout.sglang.lost_after=3")
    run.until(lambda: run.done)
    os.kill(run.pids(ROUTER)[0], signal.SIGSTOP)
    run.until(lambda: run.has_warned("the router"))
    os.kill(run.pids(SERVER)[0], signal.SIGKILL)
    assert run.end() == ""
    assert run.process.returncode == 0
    assert run.has_warned("requests go on without it", "SGLang server lost")
    check_run(run.folder, 6, max_staleness=1)


def test_on_two_nodes_a_run_outlives_router_and_servers_and_names_a_dead_rank(drill, check_run, two_nodes):
    run = drill(
        f"cluster.address={two_nodes.address}",
        "cluster.nodes=2",
        "parallel.dp=2",
        "train.steps=1000",
        "checkpoints.every=1",
    )
    run.until(lambda: run.done == 2)
    raylets = [one.process.pid for node in two_nodes.list_all_nodes() for one in node.all_processes["raylet"]]
    run.until(lambda: all(set(run.pids(SERVER)) & set(descendants(raylet)) for raylet in raylets))
    assert all("/generate" in (run.folder / f"logs/sglang-{i}.log").read_text() for i in (0, 1))
    assert (run.folder / "logs/router.log").is_file()
    assert not run.folder.with_name(".run.starting").exists()

    os.kill(run.pids(ROUTER)[0], signal.SIGKILL)
    run.until(lambda: run.has_warned("the router"))
    for pid in run.pids(SERVER):
        os.kill(pid, signal.SIGKILL)
    run.until(lambda: run.has_warned("is back"))
    done = run.done
    run.until(lambda: run.done > done and run.is_generating())

    servers, rank = run.pids(SERVER), run.pids(RANK)[0]
    os.kill(rank, signal.SIGKILL)
    message = run.end()
    assert run.process.returncode == 1
    assert "trainer rank " in message
    assert f"pid {rank}): its process ended between two calls" in message
    assert f"rlcore train --resume --run-dir {run.folder}" in message
    wait_for_the_end_of(servers)

    check_run(run.folder, resume(run))


def wait_for_the_end_of(pids):
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
