"""Ends what is left of a local Ray when its run is gone: `python -m rlcore.cluster.reaper FOLDER PID...`.

Ray's helpers outlive a run that is killed (kill -9) by a minute. This process waits for the end of its standard
input, which the system brings about however the run ends, then ends them and removes their folder.
"""

import os
import shutil
import signal
import sys
from contextlib import suppress


def main() -> None:
    folder, *pids = sys.argv[1:]
    sys.stdin.read()
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
