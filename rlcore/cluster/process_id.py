"""Which process a number means: numbers are used again, and another machine has its own."""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessId:
    """A process. `started` counts clock ticks of the machine; `system` tells machines and containers apart.

    Both are empty where there is no /proc.
    """

    number: int
    started: str = ""
    system: str = ""


def identify(number: int) -> ProcessId | None:
    """The process of this number that runs here now, if any."""
    if not _PROC.is_dir():
        return ProcessId(number)
    try:
        # The name, in parentheses, may contain anything; what follows it starts with the third field.
        started = (_PROC / str(number) / "stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
    return ProcessId(number, started, _system())


def end(process: ProcessId) -> None:
    """Kill a process if it still runs, here."""
    if identify(process.number) == process:
        with suppress(ProcessLookupError):
            os.kill(process.number, signal.SIGKILL)


def _system() -> str:
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
