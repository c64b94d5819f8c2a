"""Starts and ends a node's part of a cluster, there: `python -m rlcore.cluster.node start LOG COMMAND...`.

`start` waits until COMMAND, a `ray start --block`, says that Ray runs, leaves it running, and prints which
process it is, as NUMBER:STARTED. `stop NUMBER:STARTED` ends that process, with all that it started, only.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from rlcore.cluster.process_id import end, identify
from rlcore.telemetry.memory import descendants

_SAID = "Ray runtime started"
_START_SECONDS = 120.0
_STOP_SECONDS = 20.0
_LAST_LINES = 8


def main() -> int:
    action, *rest = sys.argv[1:]
    return _start(Path(rest[0]), rest[1:]) if action == "start" else _stop(*rest[0].split(":"))


def _start(log: Path, command: list[str]) -> int:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    until = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        if _SAID in log.read_text(errors="replace"):
            found = identify(process.pid)
            print(f"{process.pid}:{found.started if found else ''}")
            return 0
        time.sleep(0.2)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    print("\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:]), file=sys.stderr)
    return 1


def _stop(number: str, started: str) -> int:
    """Ask it to end, which ends its children too; kill what is left after a while."""
    meant = identify(int(number))
    if meant is None or meant.started != started:
        return 0
    all_of_it = [meant, *filter(None, map(identify, descendants(meant.number)))]
    os.kill(meant.number, signal.SIGTERM)
    until = time.monotonic() + _STOP_SECONDS
    while any(identify(one.number) == one for one in all_of_it) and time.monotonic() < until:
        time.sleep(0.2)
    for one in all_of_it:
        end(one)
    return 0


if __name__ == "__main__":
    sys.exit(main())
