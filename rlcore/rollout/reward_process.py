"""The host's side of a reward's worker processes: start, call, time out, kill, replace.

One `RewardProcess` is one process with one call at a time; a `RewardPool` holds as many as may score
together, and narrows a failed call down to the sample at fault. What a failure means is decided above.
"""

import asyncio
import contextlib
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rlcore.data.sample import Sample
from rlcore.errors import RlcoreError, fail
from rlcore.rollout.reward_worker import HEADER, Order, Results, author_frame, pack

# The worker ends itself at the time-out, saying where it hung; one that cannot is killed this much later.
GRACE_SECONDS = 1.0
# Loading a plugin may mean importing torch and reading a reward model from a slow disk.
START_SECONDS = 600.0
CLOSE_SECONDS = 5.0

NO_ANSWER = (TimeoutError, EOFError, ConnectionError)
STANDARD_ERROR = 2
Result = TypeVar("Result")


class CallFailed(Exception):
    """A call gave no results; the text says why and where."""


@dataclass(frozen=True)
class Verdict:
    """What a reward said about one sample: numbers, or why there are none. `seconds` is the sample's share."""

    value: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None


async def all_or_first_error(calls: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Run all together; the first error ends the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


class RewardProcess:
    """One worker process, started at once and in the background; the first call waits until it is ready."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._alive = self._ready = self._closes = False
        self._start()

    async def ready(self) -> None:
        """Wait until the plugin is loaded, after a kill in a new process; raises RlcoreError if it cannot."""
        if not self._alive:
            self._start()
        if self._ready:
            return
        try:
            async with asyncio.timeout(START_SECONDS):
                kind, answer = await self._receive()
        except NO_ANSWER as error:
            raise fail(self._order.place, f"cannot start: {self._post_mortem(error, START_SECONDS)}") from None
        except BaseException:
            self.kill()
            raise
        if kind == "unusable":
            self.kill()
            raise RlcoreError(answer)
        self._ready = True
        self._closes = answer

    async def score(self, samples: Sequence[Sample]) -> Results:
        """Make one call of a process that is ready; raises CallFailed."""
        try:
            async with asyncio.timeout(self._order.timeout + GRACE_SECONDS):
                await asyncio.get_running_loop().sock_sendall(self._channel, pack(list(samples)))
                kind, answer = await self._receive()
        except NO_ANSWER as error:
            raise CallFailed(self._post_mortem(error, self._order.timeout)) from None
        except BaseException:
            self.kill()  # an answer may still be on its way, and would be taken for the next call's
            raise
        if kind == "error":
            raise CallFailed(answer)
        results: Results = answer
        return results

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        if self._alive:
            self._end()

    async def close(self) -> None:
        """End the process, after the reward's own `close()` if it has one, which may take seconds."""
        if self._alive and self._closes:
            self._channel.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, CLOSE_SECONDS)
        self.kill()

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair()
        self._last_words = tempfile.TemporaryFile()  # noqa: SIM115 - it is read when the process has ended
        descriptors = (theirs.fileno(), self._last_words.fileno())
        with theirs:
            self._process = subprocess.Popen(
                # -P: a folder or file of the current folder is not taken for a module of its name.
                [sys.executable, "-P", "-m", "rlcore.rollout.reward_worker", *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=STANDARD_ERROR,
                start_new_session=True,  # Ctrl-C is the host's; and what the reward starts dies with it
            )
        self._channel.sendall(pack(self._order))
        self._channel.setblocking(False)
        self._alive = True

    async def _receive(self) -> tuple[str, Any]:
        (length,) = HEADER.unpack(await self._read(HEADER.size))
        message: tuple[str, Any] = pickle.loads(await self._read(length))
        return message

    async def _read(self, size: int) -> bytes:
        loop, data = asyncio.get_running_loop(), bytearray()
        while len(data) < size:
            if not (chunk := await loop.sock_recv(self._channel, size - len(data))):
                raise EOFError
            data += chunk
        return bytes(data)

    def _end(self) -> tuple[int, str]:
        """Kill the process group; returns exit status and last words."""
        with contextlib.suppress(ProcessLookupError):  # it had ended, and left nothing behind
            os.killpg(self._process.pid, signal.SIGKILL)
        self._alive = self._ready = self._closes = False
        self._channel.close()
        with self._last_words as file:
            file.seek(0)
            return self._process.wait(), file.read().decode(errors="replace")

    def _post_mortem(self, error: Exception, limit: float) -> str:
        """Kill the process, and say why it gave no answer and where it was."""
        status, words = self._end()
        if isinstance(error, TimeoutError) or words.startswith("Timeout"):
            reason = f"it took longer than {limit:g} s and was killed"
        elif status < 0:
            reason = f"its process was ended by {signal.Signals(-status).name}"
        else:
            reason = f"its process ended with exit status {status}"
        return reason + _whereabouts(words)


def _whereabouts(words: str) -> str:
    """The author's line in the traceback that faulthandler left, innermost frame first; empty without one."""
    threads = [thread for thread in words.split("\n\n") if "reward_worker.py" in thread]
    frames = re.findall(r'File "(.+)", line (\d+)', threads[0]) if threads else []
    if not frames:
        return ""
    where = author_frame([(file, int(line)) for file, line in reversed(frames)])
    return " while it awaited something" if "/asyncio/" in where else f" ({where})"


class RewardPool:
    """The worker processes of one reward: as many calls at a time, each call one group of samples."""

    def __init__(self, order: Order, size: int) -> None:
        self._processes = [RewardProcess(order) for _ in range(size)]
        self._idle: asyncio.Queue[RewardProcess] = asyncio.Queue()
        for process in self._processes:
            self._idle.put_nowait(process)

    async def score(self, samples: Sequence[Sample]) -> list[Verdict]:
        """One verdict per sample. A failed call is repeated sample by sample: only the one at fault is lost."""
        process, failure = await self._idle.get(), ""
        try:
            await process.ready()
            start = time.perf_counter()
            results = await process.score(samples)
        except CallFailed as error:
            failure = str(error)
        finally:
            self._idle.put_nowait(process)
        seconds = (time.perf_counter() - start) / len(samples)
        if not failure:
            return [Verdict(value, parts, seconds) for value, parts in results]
        if len(samples) == 1:
            return [Verdict(seconds=seconds, error=failure)]
        alone = await all_or_first_error(self.score([sample]) for sample in samples)
        return [verdict for (verdict,) in alone]

    async def close(self) -> None:
        """End every process."""
        await asyncio.gather(*(process.close() for process in self._processes))
