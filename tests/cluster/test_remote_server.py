"""Servers on two nodes of a Ray cluster: real raylets on this machine. What serves is a small web server."""

import asyncio
import os
import signal
import sys
import time

import pytest
from ray.cluster_utils import Cluster

from rlcore.cluster.cluster_ray import ClusterRay, running_cluster
from rlcore.cluster.remote_server import RemoteServer
from rlcore.errors import RlcoreError
from rlcore.rollout.sglang.arguments import Command
from rlcore.rollout.sglang.client import Client
from rlcore.rollout.sglang.fleet import Fleet
from rlcore.rollout.sglang.joint_server import JointServer
from rlcore.rollout.sglang.server import free_port
from rlcore.telemetry.log_files import LogFolder

# Answers every path with its process's id and the GPUs that it sees.
WEB = """
import http.server, os, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        said = f'{os.getpid()} {os.environ.get("CUDA_VISIBLE_DEVICES")} {os.environ["WORD"]}'.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)
print("serving", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


@pytest.fixture(scope="module")
def home():
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 2, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1, num_gpus=2)
    cluster.wait_for_nodes()
    home = ClusterRay(running_cluster(cluster.address))
    home.reserve(home.choose(2, 2), [{"CPU": 1.0, "GPU": 2.0}] * 2, [0, 1], {})
    yield home
    home.stop()
    cluster.shutdown()


@pytest.fixture
def logs(tmp_path):
    return LogFolder(tmp_path / "starting")


@pytest.fixture
def move_logs(logs, tmp_path):
    (tmp_path / "run").mkdir()
    return lambda: logs.move(tmp_path / "run")


@pytest.fixture
def start(home, logs):
    started = []

    def begin(index=0, gpus=0, code=WEB, environment=None, port=None):
        port = port or free_port()
        words = (sys.executable, "-c", code, str(port))
        command = Command(words, {"WORD": "said", **(environment or {})}, f"http://127.0.0.1:{port}", (port,))
        log = logs.file(f"server-{len(started)}.log")
        started.append(RemoteServer(command, log, home, index, gpus))
        return started[-1]

    yield begin
    for server in started:
        server.stop()


def healthy(server):
    asyncio.run(server.wait_healthy("/", 60))


def ask(server):
    async def asking():
        client = Client(server.url)
        try:
            return (await client.get("/")).split()
        finally:
            await client.close()

    return asyncio.run(asking())


def ended(server):
    until = time.monotonic() + 30
    while server.alive and time.monotonic() < until:
        time.sleep(0.05)
    return not server.alive


def test_servers_of_a_node_share_its_gpus_without_sharing_one(start):
    servers = [start(gpus=1), start(gpus=1), start(index=1, environment={"CUDA_VISIBLE_DEVICES": "1"})]
    for server in servers:
        healthy(server)
    (_, one, word), (_, other, _), (_, given, _) = map(ask, servers)
    assert {one, other} == {"0", "1"}
    assert given == "1"
    niceness = {os.getpriority(os.PRIO_PROCESS, int(ask(server)[0])) for server in servers}
    assert niceness == {os.getpriority(os.PRIO_PROCESS, 0)}
    assert word == "said"
    assert servers[0].log.read_text().startswith("serving")


def test_a_server_that_ends_is_noticed_and_starts_again_where_it_was(start, move_logs):
    server = start(index=1)
    healthy(server)
    pid = int(ask(server)[0])
    os.kill(pid, signal.SIGKILL)
    assert ended(server)
    assert "exit status -9 on node" in server.end()
    server.stop()
    move_logs()
    again = server.again()
    healthy(again)
    assert again.url == server.url
    assert again.log.parent.name == "run"
    assert again.log.read_text().count("serving") == 2
    assert int(ask(again)[0]) != pid
    again.stop()
    assert ended(again)


def test_a_server_that_cannot_start_is_explained_from_its_own_node(start):
    server = start(index=1, code="import os, sys; print('no', os.environ['WORD'], 'memory'); sys.exit(3)")
    with pytest.raises(RlcoreError, match=r"exit status 3 on node (.|\n)*WORD=said(.|\n)*no said memory"):
        healthy(server)


def test_a_port_that_is_taken_on_the_node_is_said_before_another_server_is_taken_for_this_one(start):
    first = start(index=1)
    healthy(first)
    second = start(index=1, port=int(first.url.rpartition(":")[2]))
    with pytest.raises(RlcoreError, match=rf"server at {first.url}: port \d+ is taken on its node\n +try: ss"):
        healthy(second)
    second.stop()
    assert first.alive


def test_of_a_server_on_two_nodes_all_processes_live_or_none(start):
    first, second = start(), start(index=1)
    server = JointServer([first, second])
    healthy(server)
    healthy(second)
    os.kill(int(ask(second)[0]), signal.SIGKILL)
    assert ended(server)
    assert "exit status -9" in server.end()
    server.stop()
    assert not first.alive
    again = server.again()
    healthy(again)
    assert again.alive
    again.stop()
    assert ended(again)


def test_the_end_of_one_process_of_a_server_takes_it_out_of_the_fleet(start, monkeypatch):
    monkeypatch.setattr("rlcore.rollout.sglang.fleet.LOOK_SECONDS", 0.05)
    first, second = start(), start(index=1)
    server = JointServer([first, second])
    healthy(server)
    healthy(second)
    pid, lost = int(ask(second)[0]), []

    async def watch():
        worker = Client(server.url)
        fleet = Fleet([worker], {server.url: server})
        fleet.on_lost = lambda worker, why: lost.append(why)
        # What answers here says nothing of its load.
        monkeypatch.setattr(fleet, "_examine", lambda worker: asyncio.sleep(0))
        fleet.start_watching()
        os.kill(pid, signal.SIGKILL)
        while not lost:
            await asyncio.sleep(0.05)
        await fleet.close()

    asyncio.run(asyncio.wait_for(watch(), 60))
    assert "has ended" in lost[0]
