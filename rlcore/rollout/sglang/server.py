"""The process of one server or router: started, waited for, looked after, ended with all that it started."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from typing import Self

from rlcore.errors import RlcoreError, fail
from rlcore.rollout.sglang.arguments import Command
from rlcore.rollout.sglang.client import Client, ServerLost
from rlcore.telemetry.log_files import LogFile

# Large models are read for a long time from slow disks, and kernels compiled at the first start.
START_SECONDS = 3600.0
LOOK_SECONDS = 0.5
LAST_LINES = 15
# Processes that were just killed give their ports back in moments.
PORT_SECONDS = 3.0
# Above those of Ray's workers, below those that systems hand out.
PORTS = (20000, 32768)


class Server(ABC):
    """A server that was started for this run, wherever its processes are; it answers HTTP at `url`."""

    url: str

    @property
    @abstractmethod
    def log(self) -> Path:
        """The file that gets all that it prints."""

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Known at once, without asking it anything."""

    @abstractmethod
    def end(self) -> str:
        """How it ended, in a few words; empty while it lives."""

    @abstractmethod
    def story(self) -> str:
        """How it was started, and the last lines that it printed."""

    @abstractmethod
    def stop(self) -> None:
        """End it and its children at once."""

    @abstractmethod
    def again(self) -> Self:
        """Start it once more as it was, after `stop`. Raises RlcoreError where its place is gone."""

    async def wait_healthy(self, route: str = "/health", seconds: float = START_SECONDS) -> None:
        """Wait until it answers; raises RlcoreError with its last words if it ends or takes longer."""
        client, until = Client(self.url), time.monotonic() + seconds
        try:
            # Before, another could answer at its address.
            await self.wait_started()
            while not await _answers(client, route):
                if not self.alive:
                    raise self._failure(f"ended with {self.end()} while starting")
                if time.monotonic() > until:
                    raise self._failure(f"did not answer within {seconds:g} s")
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await client.close()

    @abstractmethod
    async def wait_started(self) -> None:
        """Wait until its processes run. Raises RlcoreError where one cannot be started."""

    def _failure(self, what: str) -> RlcoreError:
        return fail(f"server at {self.url}", f"{what}; it was started as\n    {self.story()}")


class ServerProcess(Server):
    """A process of this machine, in a process group of its own that ends with this one."""

    def __init__(self, command: Command, log: LogFile) -> None:
        """Start it; `wait_healthy` says when it can be used. Raises RlcoreError where a port is taken."""
        _check_free(command)
        self.command = command
        self.url = command.url
        self._log = log
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command.words,
                env=command.full_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        guard = [sys.executable, "-P", "-m", "rlcore.rollout.sglang.guard", str(self.pid)]
        # Outside this process's group, or what ends the group would end its guard, and leave the server.
        self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)

    @property
    def log(self) -> Path:
        return self._log.path

    @property
    def pid(self) -> int:
        """Of the process and of its group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> None:
        """Return when it has ended."""
        self._process.wait()

    async def wait_started(self) -> None:
        """It runs since it was made."""

    def end(self) -> str:
        return "" if self.alive else f"exit status {self._process.returncode}"

    def story(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines[-LAST_LINES:] if line.strip()]
        added = [f"{name}={value}" for name, value in self.command.environment.items()]
        return "\n    ".join([" ".join([*added, *self.command.words]), *said])

    def stop(self) -> None:
        if self._guard.returncode is not None:
            # Stopped before: by now the number may be another's.
            return
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        assert self._guard.stdin
        self._guard.kill()
        self._guard.stdin.close()
        self._guard.wait()

    def again(self) -> Self:
        return type(self)(self.command, self._log)


def free_port() -> int:
    """A port of this machine that nobody listens on just now, nor is given without having asked for it."""
    while _is_taken(port := SystemRandom().randrange(*PORTS)):
        pass
    return port


def _check_free(command: Command) -> None:
    """Raise RlcoreError for a port that another listens on, who would be taken for this server."""
    until = time.monotonic() + PORT_SECONDS
    while taken := [port for port in command.ports if _is_taken(port)]:
        if time.monotonic() > until:
            message = f"port {taken[0]} is taken on its node"
            raise fail(f"server at {command.url}", message, f"ss -ltnp sport = :{taken[0]} says who has it")
        time.sleep(0.1)


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        # Connections that are closing are no obstacle, to servers neither.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


async def _answers(client: Client, route: str) -> bool:
    try:
        await client.get(route)
    except (ServerLost, RlcoreError):
        return False
    return True
