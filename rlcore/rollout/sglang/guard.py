"""Ends a server whose run is gone: `python -m rlcore.rollout.sglang.guard PROCESS_GROUP`.

A run that is killed cannot end what it started. This process waits for the end of its standard input, which the
system brings about however the run ends, then kills the whole group.
"""

import os
import signal
import sys
from contextlib import suppress


def main() -> None:
    sys.stdin.read()
    with suppress(ProcessLookupError):
        os.killpg(int(sys.argv[1]), signal.SIGKILL)


if __name__ == "__main__":
    main()
