"""One rank's process: holds the worker that its maker makes, calls it, and answers while it works."""

import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from torch.distributed import TCPStore

from rlcore.cluster import transport
from rlcore.cluster.group import Make, Rank
from rlcore.cluster.heartbeat import Beat, Heart
from rlcore.cluster.process_id import ProcessId, identify
from rlcore.errors import Problem, RlcoreError, fail


@dataclass(frozen=True)
class Outcome:
    """How a call ended on one rank: with a value, with problems to be mended, or with a cause and its trace."""

    value: Any = None
    problems: Sequence[Problem] = ()
    cause: str = ""
    trace: str = ""

    @property
    def is_good(self) -> bool:
        return not (self.problems or self.cause)


class Worker:
    """A Ray actor. Calls run one after the other on one thread; `beat` and `live` run beside them."""

    def __init__(self, number: int, world_size: int, log: Path, folder: Path) -> None:
        self._place = (number, world_size)
        self._folder = folder
        self._heart = Heart()
        self._store: TCPStore | None = None
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        _write_output_to(log)
        transport.register()

    def host(self) -> tuple[str, int]:
        """Open the store where all ranks meet; return its address."""
        host = ray.util.get_node_ip_address()
        self._store = TCPStore(host, 0, self._place[1], is_master=True, wait_for_workers=False)
        return host, self._store.port

    def start(self, make: Make, address: tuple[str, int]) -> Outcome:
        """Make the worker, once all ranks can meet at `address`."""
        return self._attempt(self._make, make, address)

    def _make(self, make: Make, address: tuple[str, int]) -> None:
        _enter(self._folder)
        number, world_size = self._place
        store = self._store or TCPStore(*address, world_size, is_master=False)
        self._worker = make(Rank(number, world_size, store, self._heart.enter))

    def call(self, method: str, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Outcome:
        """Call a method of the worker."""
        args, kwargs = arguments
        return self._attempt(getattr(self._worker, method), *args, **kwargs)

    def log_to(self, log: Path) -> Outcome:
        """Go on with this file for all output, that of before included."""
        return self._attempt(self._log_to, log)

    def _log_to(self, log: Path) -> None:
        sys.stdout.flush()
        if not log.parent.is_dir():
            raise _not_shared(log.parent)
        with log.open("ab") as file:
            file.write(self._log.read_bytes())
        _write_output_to(log)

    @ray.method(concurrency_group="watch")
    def beat(self) -> Beat:
        """Say what this rank does now."""
        return self._heart.beat()

    @ray.method(concurrency_group="watch")
    def process(self) -> ProcessId:
        return identify(os.getpid()) or ProcessId(os.getpid())

    @ray.method(concurrency_group="life")
    def live(self) -> None:
        """Never returns: a caller learns of the end of this process by the end of this call."""
        threading.Event().wait()

    def _attempt(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Outcome:
        self._heart.begin()
        try:
            return Outcome(work(*args, **kwargs))
        except RlcoreError as error:
            return Outcome(problems=error.problems)
        except Exception as error:
            traceback.print_exc()
            phase = self._heart.beat().phase
            return Outcome(cause=f"{type(error).__name__} ({phase}): {error}", trace=traceback.format_exc())
        finally:
            self._heart.end()


def _enter(folder: Path) -> None:
    """Work where the run was started, as its paths are relative to that."""
    try:
        os.chdir(folder)
    except OSError:
        raise _not_shared(folder) from None


def _not_shared(folder: Path) -> RlcoreError:
    return fail(str(folder), "is not there", "a file system that all nodes share, under the same path")


def _write_output_to(log: Path) -> None:
    """Send what this process prints, libraries written in C included, to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
