"""Ends what is left of a local Ray when its run is gone: `python -m rlcore.cluster.reaper FOLDER PROCESS...`.

Ray's helpers outlive a run that is killed (kill -9) by a minute. This process waits for the end of its standard
input, which the system brings about however the run ends, then ends them and removes their folder. A PROCESS is
`number:started`, so that a number that has gone to another process since is let alone.
"""

import shutil
import sys

from rlcore.cluster.process_id import end, identify


def main() -> None:
    folder, *processes = sys.argv[1:]
    sys.stdin.read()
    for number, _, started in (process.partition(":") for process in processes):
        found = identify(int(number))
        if found and found.started == started:
            end(found)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
