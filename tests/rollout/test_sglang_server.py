"""Servers are processes that are waited for, explained, and never left behind. Here they are not SGLang's."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlcore.config.schema import Recipe
from rlcore.config.sglang_arguments import known_arguments
from rlcore.errors import RlcoreError
from rlcore.rollout.sglang.arguments import Command, ServerPlace, router_command, server_command
from rlcore.rollout.sglang.server import ServerProcess, free_port
from rlcore.telemetry.log_files import LogFolder

WEB = "import sys, http.server as h; h.test(h.SimpleHTTPRequestHandler, port=int(sys.argv[1]))"


def started(folder, *code):
    """A process of Python code, with a port that it may use as its argument."""
    port = free_port()
    words = (sys.executable, "-c", *code, str(port))
    command = Command(words, {"WORD": "said"}, f"http://127.0.0.1:{port}")
    return ServerProcess(command, LogFolder(folder).file("server.log"))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_server_is_waited_for_and_ended(tmp_path):
    server = started(tmp_path, WEB)
    asyncio.run(server.wait_healthy("/", 30))
    assert server.alive
    server.stop()
    assert not server.alive


def test_a_server_is_ended_once_as_its_number_may_go_to_another_process(tmp_path, monkeypatch):
    server = started(tmp_path, WEB)
    server.stop()
    ended = []
    monkeypatch.setattr(os, "killpg", lambda *given: ended.append(given))
    server.stop()
    assert ended == []


def test_a_server_that_starts_again_logs_on_where_its_logs_have_gone(tmp_path):
    logs = LogFolder(tmp_path / "starting")
    log = logs.file("server.log")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/server.log").write_text("of an earlier attempt\n")
    server = ServerProcess(Command((sys.executable, "-c", "print('here')"), {}, ""), log)
    server.wait()
    logs.move(tmp_path / "run")
    server.stop()
    again = server.again()
    again.wait()
    again.stop()
    assert server.log == again.log == tmp_path / "run/server.log"
    assert again.log.read_text() == "here\n" * 2
    assert (tmp_path / "run/server.1.log").read_text() == "of an earlier attempt\n"
    assert not (tmp_path / "starting").exists()


def test_free_ports_are_none_that_systems_hand_out():
    lowest, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert all(free_port() < int(lowest) for _ in range(20))


def test_a_server_starts_on_no_port_that_another_listens_on(tmp_path, monkeypatch):
    monkeypatch.setattr("rlcore.rollout.sglang.server.PORT_SECONDS", 0.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        command = Command((sys.executable, "-c", WEB, "0"), {}, "http://127.0.0.1:1", (free_port(), port))
        with pytest.raises(RlcoreError, match=rf"server at http://127.0.0.1:1: port {port} is taken"):
            ServerProcess(command, LogFolder(tmp_path).file("server.log"))


def test_a_server_that_ends_while_starting_shows_its_last_words(tmp_path):
    server = started(tmp_path, "import os, sys; print('no', os.environ['WORD'], 'memory'); sys.exit(3)")
    with pytest.raises(RlcoreError, match=r"exit status 3 while starting(.|\n)*WORD=said(.|\n)*no said memory"):
        asyncio.run(server.wait_healthy("/", 30))
    server.stop()


def test_a_server_that_never_answers_is_given_up(tmp_path):
    server = started(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(RlcoreError, match=r"did not answer within 0\.1 s"):
        asyncio.run(server.wait_healthy("/", 0.1))
    server.stop()


@pytest.mark.parametrize("end", [os.kill, os.killpg], ids=lambda end: end.__name__)
def test_a_killed_run_leaves_no_server(tmp_path, ends, end):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from rlcore.rollout.sglang.arguments import Command\n"
        "from rlcore.rollout.sglang.server import ServerProcess\n"
        "from rlcore.telemetry.log_files import LogFolder\n"
        "words = (sys.executable, '-c', 'import time; time.sleep(600)')\n"
        "log = LogFolder(Path()).file('log')\n"
        "print(ServerProcess(Command(words, {}, ''), log).pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path, start_new_session=True)
    pid = int(run.stdout.readline())
    assert alive(pid)
    end(run.pid, signal.SIGKILL)
    run.wait()
    assert ends(pid)


def recipe(**rollout):
    return Recipe.model_validate({"model": {"checkpoint": "some/model"}, "seed": 3, "rollout": rollout})


def option(words, flag):
    return words[words.index(flag) + 1]


def test_without_gpus_a_server_runs_on_the_processor():
    place = ServerPlace("127.0.0.1", 30001)
    command = server_command(recipe(), "some/model", place, known_arguments())
    assert option(command.words, "--device") == "cpu"
    assert option(command.words, "--random-seed") == "3"
    assert command.environment["SGLANG_USE_CPU_ENGINE"] == "1"
    assert command.url == "http://127.0.0.1:30001"


def test_a_recipe_goes_before_defaults_and_a_group_before_the_recipe():
    args = {"max_total_tokens": 1000, "page_size": 4}
    command = server_command(
        recipe(sglang={"args": args}),
        "some/model",
        ServerPlace("127.0.0.1", 30001, gpus=8),
        known_arguments(),
        {"page_size": 64},
    )
    assert "--device" not in command.words
    assert option(command.words, "--tp-size") == "8"
    assert option(command.words, "--max-total-tokens") == "1000"
    assert option(command.words, "--page-size") == "64"


def test_what_a_recipe_changes_in_the_policys_configuration_reaches_no_other_model():
    model = {"checkpoint": "some/model", "overrides": {"num_hidden_layers": 1}}
    changed, place = Recipe.model_validate({"model": model}), ServerPlace("127.0.0.1", 30001)
    policy, judge = (
        server_command(changed, one, place, known_arguments()) for one in ("some/model", "some/judge")
    )
    assert option(policy.words, "--json-model-override-args") == '{"num_hidden_layers": 1}'
    assert "--json-model-override-args" not in judge.words


def test_proxies_do_not_reach_servers(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://somewhere")
    assert "HTTPS_PROXY" not in Command((), {}, "").full_environment()


def test_a_router_knows_its_workers_and_takes_no_port_of_another():
    workers = ["http://a:1", "http://b:2"]
    command, other = (
        router_command(recipe(), workers, ServerPlace("127.0.0.1", port)) for port in (30000, 30001)
    )
    assert option(command.words, "--prometheus-port") != option(other.words, "--prometheus-port")
    start = command.words.index("--worker-urls") + 1
    assert list(command.words[start : start + 2]) == workers
