"""`rlcore cluster`: Ray on the nodes of a host file; ssh is a script that runs commands on this machine."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray

from rlcore.cli.main import main
from rlcore.rollout.sglang.server import free_port

HERE = ray.util.get_node_ip_address()
# A second node is this machine once more. What runs here already is in another RAY_TMPDIR.
SSH = """\
#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
login=$1; shift
echo "$login $*" >> {log}
[ "$login" = root@10.0.0.9 ] && echo "connect to host 10.0.0.9 port 22: timed out" >&2 && exit 255
RAY_TMPDIR={tmp} exec sh -c "$(echo "$*" | sed s/address=10.0.0.2/address={here}/)"
"""
COUNT = "import ray; ray.init('{0}', logging_level=40); print(sum(node['Alive'] for node in ray.nodes()))"


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """Put the script first on PATH; return the file of what it was asked."""
    log, folder = tmp_path / "asked", tmp_path / "bin"
    folder.mkdir()
    script = folder / "ssh"
    script.touch()
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as short:
        script.write_text(SSH.format(log=log, tmp=short, here=HERE))
        yield log


@pytest.fixture
def hostfile(tmp_path):
    def write(*lines):
        file = tmp_path / "hosts"
        file.write_text("".join(f"{line}\n" for line in lines))
        return file

    return write


def cluster(capsys, *arguments):
    code = main(["cluster", *map(str, arguments)])
    return code, *capsys.readouterr()


@pytest.fixture
def other():
    """A process that `pkill -f ray` would end."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "ray::raylet"])
    yield process
    process.kill()
    process.wait()


def test_a_cluster_comes_up_and_down_and_other_rays_stay(ssh, hostfile, other, ends, capsys):
    file, port = hostfile(f"{HERE} slots=8", "# spare", "root@10.0.0.2"), free_port()
    code, out, err = cluster(capsys, "up", "--hostfile", file, "--port", port)
    assert code == 0, err
    assert f"a Ray cluster of 2 nodes runs at {HERE}:{port}" in out
    count = subprocess.run(
        [sys.executable, "-c", COUNT.format(f"{HERE}:{port}")], capture_output=True, text=True
    )
    assert count.stdout.split()[-1:] == ["2"], count.stderr
    record = Path(f"{file}.up.json")
    numbers = [int(one["process"].split(":")[0]) for one in json.loads(record.read_text())]

    code, _, err = cluster(capsys, "up", "--hostfile", file, "--port", port)
    assert code == 1
    assert "is up already" in err

    assert cluster(capsys, "down", "--hostfile", file)[0] == 0
    assert [ends(number) for number in numbers] == [True, True]
    assert not record.exists()
    assert other.poll() is None


def test_a_node_that_cannot_be_reached_is_named_and_the_others_are_ended(ssh, hostfile, capsys):
    file = hostfile(HERE, "root@10.0.0.9")
    code, _, err = cluster(capsys, "up", "--hostfile", file, "--port", free_port())
    assert code == 1
    assert "node root@10.0.0.9: connect to host 10.0.0.9 port 22: timed out" in err
    assert not Path(f"{file}.up.json").exists()
    assert "rlcore.cluster.node stop" in ssh.read_text()


def test_commands_for_doing_it_by_hand_are_printed_and_not_run(ssh, hostfile, capsys):
    code, out, _ = cluster(capsys, "up", "--print", "--hostfile", hostfile("10.0.0.1", "root@10.0.0.2"))
    assert code == 0
    _, head, _, worker = out.splitlines()
    assert "start --head --port=6379 --node-ip-address=10.0.0.1" in head
    assert "start --address=10.0.0.1:6379 --node-ip-address=10.0.0.2" in worker
    assert "-u http_proxy -u HTTP_PROXY" in worker
    assert not ssh.exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [([], "names no node"), (["10.0.0.1", "root@10.0.0.1 slots=8"], "names 10.0.0.1 more than once")],
)
def test_a_host_file_that_makes_no_cluster_is_refused(hostfile, capsys, lines, message):
    code, _, err = cluster(capsys, "up", "--hostfile", hostfile(*lines))
    assert code == 1
    assert message in err


def test_nothing_is_ended_that_was_not_started_from_here(hostfile, capsys):
    code, _, err = cluster(capsys, "down", "--hostfile", hostfile("10.0.0.1"))
    assert code == 1
    assert "no cluster of this host file was started from here" in err
