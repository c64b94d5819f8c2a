"""The process of one server or router: started, waited for, looked after, ended with all that it started."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from rlcore.errors import RlcoreError, fail
from rlcore.rollout.sglang.arguments import Command
from rlcore.rollout.sglang.client import Client, ServerLost

# Large models are read for a long time from slow disks, and kernels compiled at the first start.
START_SECONDS = 3600.0
LOOK_SECONDS = 0.5
LAST_LINES = 15


class ServerProcess:
    """A process that answers HTTP at `command.url`, in a process group of its own that ends with this one.

    `log` gets all that it prints.
    """

    def __init__(self, command: Command, log: Path) -> None:
        """Start it; `wait_healthy` says when it can be used."""
        self.command = command
        self.url = command.url
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command.words,
                env=command.full_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        guard = [sys.executable, "-m", "rlcore.rollout.sglang.guard", str(self.pid)]
        # Outside this process's group, or what ends the group would end its guard, and leave the server.
        self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)

    @property
    def pid(self) -> int:
        """Of the process and of its group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    async def wait_healthy(self, route: str = "/health", seconds: float = START_SECONDS) -> None:
        """Wait until it answers; raises RlcoreError with its last words if it ends or takes longer."""
        client, until = Client(self.url), time.monotonic() + seconds
        try:
            while not await _answers(client, route):
                if not self.alive:
                    raise self._failure(f"ended with exit status {self._process.returncode} while starting")
                if time.monotonic() > until:
                    raise self._failure(f"did not answer within {seconds:g} s")
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await client.close()

    def stop(self) -> None:
        """End it and its children at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        assert self._guard.stdin
        self._guard.kill()
        self._guard.stdin.close()
        self._guard.wait()

    def _failure(self, what: str) -> RlcoreError:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        words = "\n    ".join(line for line in lines[-LAST_LINES:] if line.strip())
        return fail(f"server at {self.url}", f"{what}; it was started as\n    {self._shown()}\n    {words}")

    def _shown(self) -> str:
        added = [f"{name}={value}" for name, value in self.command.environment.items()]
        return " ".join([*added, *self.command.words])


def free_port() -> int:
    """A port of this machine that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _answers(client: Client, route: str) -> bool:
    try:
        await client.get(route)
    except (ServerLost, RlcoreError):
        return False
    return True
