"""Where the processes of a run log before it has a folder, and after: the files move while they are written.

Who holds one open goes on with it; who opens it again, or names it, finds it where it has gone.
"""

from dataclasses import dataclass
from itertools import count
from pathlib import Path


class LogFolder:
    """A folder for logs, now at `path`. It need not exist before there is a log."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, name: str) -> "LogFile":
        return LogFile(self, name)

    def move(self, to: Path) -> None:
        """Move all logs to a folder that is there. Older ones of the same name get a number."""
        if self.path.is_dir():
            for file in self.path.iterdir():
                _keep(to / file.name)
                file.rename(to / file.name)
            self.path.rmdir()
        self.path = to


@dataclass(frozen=True)
class LogFile:
    """A log by its name in a folder that may move."""

    folder: LogFolder
    name: str

    @property
    def path(self) -> Path:
        return self.folder.path / self.name


def _keep(old: Path) -> None:
    """Make room: `router.log` becomes `router.1.log`, or what is free."""
    if old.exists():
        names = (old.with_suffix(f".{number}{old.suffix}") for number in count(1))
        old.rename(next(name for name in names if not name.exists()))
