"""The process in which a reward lives: `python -m rlcore.rollout.reward_worker CHANNEL LAST_WORDS`.

It loads one plugin, then answers one call after another on the socket with file descriptor CHANNEL until
that closes. A call that takes too long ends the process, which first writes where it hung to the file with
descriptor LAST_WORDS. `rlcore.rollout.rewards` starts, watches and kills it.
"""

import asyncio
import contextlib
import faulthandler
import inspect
import pickle
import socket
import struct
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rlcore.errors import RlcoreError, fail
from rlcore.protocols import Reward, RewardResult
from rlcore.registry import Catalog, lock

HEADER = struct.Struct(">Q")
HOST = str(Path(__file__).parents[1])

Results = list[tuple[float, dict[str, float]]]


@dataclass(frozen=True)
class Order:
    """What a worker is to load (`plugin` is `dist:name`), and how many seconds each call may take.

    `locked` is what the host loaded under that name: a worker that finds other files refuses to score.
    """

    plugin: str
    options: dict[str, Any]
    timeout: float
    locked: lock.LockEntry
    place: str
    sys_path: tuple[str, ...]


def pack(message: object) -> bytes:
    """The message as it goes over the channel: its length, then its pickle."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(body)) + body


def _messages(channel: socket.socket) -> Iterator[Any]:
    """Read one message after another, until the other side goes."""
    with contextlib.suppress(EOFError):
        while True:
            (length,) = HEADER.unpack(_read(channel, HEADER.size))
            yield pickle.loads(_read(channel, length))


def _read(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        if not (chunk := channel.recv(size - len(data))):
            raise EOFError
        data += chunk
    return bytes(data)


def author_frame(frames: Sequence[tuple[str, int]]) -> str:
    """`file:line` of the first frame below rlcore's own, which is where a plugin's author looks first.

    `frames` run from the outermost call to the innermost.
    """
    host = [position for position, (file, _) in enumerate(frames) if file.startswith(HOST)]
    below = frames[host[-1] + 1 :] if host else frames
    file, line = (below or frames)[0]
    return f"{file}:{line}"


def _described(error: BaseException) -> str:
    frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    return f"{type(error).__name__}: {error} ({author_frame(frames)})"


def _plain(results: Sequence[RewardResult], expected: int) -> Results:
    """Results as numbers; raises TypeError or ValueError if the plugin broke its contract."""
    if len(results) != expected:
        raise ValueError(f"score() returned {len(results)} results for {expected} samples")
    return [(float(one.value), {part: float(value) for part, value in one.parts.items()}) for one in results]


def _answer(runner: asyncio.Runner, reward: Reward, samples: list[Any]) -> tuple[str, object]:
    async def scored() -> Results:
        return _plain(await reward.score(samples), len(samples))

    try:
        return "results", runner.run(scored())
    except Exception as error:  # a reward may raise anything; its policy decides what that means
        return "error", _described(error)


def _load(order: Order) -> Reward:
    sys.path[:] = order.sys_path
    plugin = Catalog.installed().load("reward", order.plugin, order.place)
    if lock.make([plugin]) != [order.locked]:
        raise fail(order.place, f"the files of {plugin.candidate.place} have changed since the run started")
    reward: Reward = plugin.create(plugin.parse_options(order.options, order.place))
    return reward


def _close(runner: asyncio.Runner, reward: Any) -> None:
    async def closed() -> None:
        if inspect.isawaitable(pending := reward.close()):
            await pending

    runner.run(closed())


def _serve(channel: socket.socket, last_words: BinaryIO) -> None:
    messages = _messages(channel)
    order: Order = next(messages)
    try:
        reward = _load(order)
    except RlcoreError as error:
        channel.sendall(pack(("unusable", error.problems)))
        return
    closes = hasattr(reward, "close")
    channel.sendall(pack(("ready", closes)))
    with asyncio.Runner() as runner:
        for samples in messages:
            # A C thread: it fires even while a regular expression or an extension holds the interpreter lock.
            faulthandler.dump_traceback_later(order.timeout, file=last_words, exit=True)
            answer = _answer(runner, reward, samples)
            faulthandler.cancel_dump_traceback_later()
            channel.sendall(pack(answer))
        if closes:
            _close(runner, reward)


def main() -> None:
    """Serve until the channel closes."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    with open(int(sys.argv[2]), "wb", buffering=0) as last_words:
        faulthandler.enable(last_words)
        with contextlib.suppress(ConnectionError):  # the host went while a call ran
            _serve(channel, last_words)


if __name__ == "__main__":
    main()
