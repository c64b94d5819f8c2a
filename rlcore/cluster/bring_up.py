"""Makes a Ray cluster of the nodes of a host file, by ssh, and ends it again: only what it has started itself.

What was started stands in a file beside the host file. Nodes have this Python environment, under the same path.
"""

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from rlcore.cluster.environment import PROXIES
from rlcore.cluster.hostfile import Host
from rlcore.errors import Problem, RlcoreError, fail, raise_if_any

_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
_AT_ONCE = 64
_NODE = (sys.executable, "-P", "-m", "rlcore.cluster.node")
# Proxies would come between the nodes. Left to itself, a head of Ray 2.60 makes a token that nobody else has;
# here the network decides who may join, as with Ray before.
_UNSET = [word for name in PROXIES for one in (name, name.upper()) for word in ("-u", one)]
_ENVIRONMENT = ["env", *_UNSET, "RAY_AUTH_MODE=disabled"]


T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Started:
    """The Ray of a node: how ssh reaches it, and its process there, as `rlcore.cluster.node` names it."""

    login: str
    process: str


@dataclass(frozen=True)
class Cluster:
    """The nodes of a host file, the first of them the head, with Ray at `port`."""

    hostfile: Path
    hosts: tuple[Host, ...]
    port: int

    @property
    def address(self) -> str:
        return f"{self.hosts[0].address}:{self.port}"

    @property
    def record(self) -> Path:
        """Where it is written what was started."""
        return self.hostfile.with_name(f"{self.hostfile.name}.up.json")

    def ray_start(self, host: Host) -> list[str]:
        """The words that make a node part of the cluster."""
        head = host == self.hosts[0]
        role = ["--head", f"--port={self.port}"] if head else [f"--address={self.address}"]
        ray = str(Path(sys.executable).with_name("ray"))
        return [
            *_ENVIRONMENT,
            ray,
            "start",
            *role,
            f"--node-ip-address={host.address}",
            "--disable-usage-stats",
        ]

    def up(self) -> None:
        """Start Ray on the head, then on all others. Where one fails, those that were started are ended.

        Raises RlcoreError naming the nodes that failed, or if the cluster is up already.
        """
        if self.record.exists():
            remedy = f"rlcore cluster down --hostfile {self.hostfile}"
            raise fail(str(self.record), "says that this cluster is up already", remedy)
        started: list[Started] = []
        for hosts in (self.hosts[:1], self.hosts[1:]):
            more, problems = _on_all(hosts, self._start)
            started += more
            self.record.write_text(json.dumps([asdict(one) for one in started], indent=2) + "\n")
            if problems:
                self.down()
                raise RlcoreError(problems)

    def down(self) -> None:
        """End what `up` started, the head last. Raises RlcoreError naming nodes that cannot be reached."""
        if not self.record.exists():
            remedy = "the host file that it was started with; ray stop ends one that was started by hand"
            raise fail(str(self.hostfile), "no cluster of this host file was started from here", remedy)
        started = [Started(**one) for one in json.loads(self.record.read_text())]
        problems = [problem for part in (started[1:], started[:1]) for problem in _on_all(part, _stop)[1]]
        raise_if_any(problems)
        self.record.unlink()

    def _start(self, host: Host) -> Started:
        log = Path(tempfile.gettempdir(), f"rlcore-ray-{host.address}-{self.port}.log")
        said = _ssh(host.login, [*_NODE, "start", str(log), *self.ray_start(host), "--block"])
        return Started(host.login, said.split()[-1])


def _stop(node: Started) -> None:
    _ssh(node.login, [*_NODE, "stop", node.process])


def _ssh(login: str, words: list[str]) -> str:
    """Run a command in this folder on a node; returns what it prints. Raises RlcoreError if it fails."""
    command = f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(words)}"
    done = subprocess.run([*_SSH, login, command], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        remedy = f"ssh {login} must work without a password, and find this folder and {sys.executable}"
        raise fail(f"node {login}", said, remedy)
    return done.stdout


def _on_all(nodes: Sequence[T], work: Callable[[T], R]) -> tuple[list[R], list[Problem]]:
    """Do work on nodes at once; returns what came of it, and the problems of nodes where it failed."""
    done, problems = [], []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for future in [pool.submit(work, node) for node in nodes]:
            try:
                done.append(future.result())
            except RlcoreError as error:
                problems += error.problems
    return done, problems
