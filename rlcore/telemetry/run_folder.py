"""A run is a folder: its layout, who may write it, and which attempt at the run this process is.

A file lock (flock) keeps a second process out; it dies with its holder, so a crash leaves nothing to clean.
"""

import fcntl
import os
import socket
from asyncio import CancelledError
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from rlcore.errors import fail
from rlcore.telemetry.environment import environment
from rlcore.telemetry.events import END, START, EventLog, last_attempt
from rlcore.telemetry.files import write_text
from rlcore.telemetry.metrics import MetricsLog

LOCK = ".lock"


@dataclass(frozen=True)
class RunPaths:
    """Where each part of a run lies."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.resolved.yaml"

    @property
    def plugins(self) -> Path:
        return self.root / "plugins.lock.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def rollouts(self) -> Path:
        return self.root / "rollouts"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    def is_run(self) -> bool:
        """Whether a run was ever started here."""
        return self.events.is_file()


class RunFolder:
    """A run that this process writes. Make it with `create`, leave it by `with` or `close`.

    `attempt` counts the starts of the run from 1; `metrics` and `events` append to its two logs.
    """

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self.paths = RunPaths(path)
        self.attempt = last_attempt(self.paths.events) + 1
        self.events = EventLog(self.paths.events, self.attempt)
        self.metrics = MetricsLog(self.paths.metrics, self.attempt)
        self._lock = lock
        for folder in (self.paths.rollouts, self.paths.logs, self.paths.checkpoints):
            folder.mkdir(exist_ok=True)

    @classmethod
    def create(cls, path: Path, *, resume: bool) -> Self:
        """Start a run in a new or empty folder, or go on with the run that is there.

        Raises RlcoreError if the folder holds anything and `resume` is off, if there is nothing to resume,
        or if another process is writing the run. Nothing is written in these cases.
        """
        path = path.expanduser()
        check_place(path, resume)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
        except OSError as error:
            raise fail(str(path), f"cannot be written: {error.strerror}", "another --run-dir") from error
        check_place(path, resume)  # once more: another process may have begun and ended meanwhile
        run = cls(path, lock)
        run.events.record(START, pid=os.getpid(), resume=resume, environment=environment())
        return run

    def write_config(self, text: str) -> Path:
        """Keep the resolved recipe (YAML text)."""
        return write_text(self.paths.config, text)

    def close(self, status: str = "completed", reason: str = "") -> None:
        """Record the end and let go of the folder. `status`: completed, interrupted or failed."""
        self.events.record(END, status=status, reason=reason)
        self.events.close()
        self.metrics.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif isinstance(error, KeyboardInterrupt | CancelledError):
            self.close("interrupted")
        else:
            self.close("failed", f"{type(error).__name__}: {error}")


def is_being_written(path: Path) -> bool:
    """Whether a process holds the lock of the run in `path`."""
    try:
        with (path / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def check_place(path: Path, resume: bool) -> None:
    """Raise RlcoreError if `path` cannot be the folder of a new run, or, with `resume`, holds none."""
    if path.exists() and not path.is_dir():
        raise fail(str(path), "is a file, not a run folder", "another --run-dir")
    content = sorted(item.name for item in path.iterdir() if item.name != LOCK) if path.exists() else []
    is_run = RunPaths(path).is_run()
    if resume and not is_run:
        found = (
            f"it holds {_few(content)}" if content else "it is empty" if path.exists() else "it does not exist"
        )
        raise fail(
            str(path), f"no run to resume here: {found}", "drop --resume, or give the --run-dir of a run"
        )
    if content and not resume:
        remedy = "--resume to go on with it, or another --run-dir" if is_run else "another --run-dir"
        what = "a run is already here" if is_run else "the folder is not empty"
        raise fail(str(path), f"{what}: {_few(content)}", remedy)


def _few(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _lock(path: Path) -> IO[str]:
    """Take the lock of the run, or say who has it."""
    file = (path / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        message = f"another process is writing this run (pid {holder})"
        raise fail(str(path), message, "wait for it or stop it, or use another --run-dir") from None
    file.truncate(0)
    file.write(f"{os.getpid()} on {socket.gethostname()}")
    file.flush()
    # A forked child would share the lock and could keep it after this process has died.
    os.register_at_fork(after_in_child=file.close)
    return file
