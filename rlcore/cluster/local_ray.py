"""A Ray of our own on this machine, private to one run: it needs no network and ends with its process."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch
from ray._common.utils import get_default_system_temp_dir

from rlcore.cluster.driver import connect
from rlcore.cluster.process_id import identify
from rlcore.errors import fail
from rlcore.telemetry.memory import descendants

# A socket's path has at most 107 characters, of which Ray needs 65 below our folder.
_LONGEST_PARENT = 107 - 65 - len("/rlcore-12345678")


class LocalRay:
    """A RayHome for ranks of so many CPU threads, and a GPU each where there are any; ended by `stop`.

    Raises RlcoreError where there are fewer GPUs than ranks.
    """

    # The end of a process of this machine is known at once.
    silence_seconds = 0.0

    def __init__(self, ranks: int, threads: int) -> None:
        self._gpus = _gpus_per_rank(ranks)
        self._threads = threads
        self.folder = _short_folder()
        # Ray has no argument for this one: whether it reports its use to its makers.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        before = descendants(os.getpid())
        try:
            connect(
                "local",
                num_cpus=ranks * threads,
                num_gpus=ranks * self._gpus,
                include_dashboard=False,
                _temp_dir=str(self.folder),
                # Ray's workers give way to all other processes otherwise.
                _system_config={"worker_niceness": 0},
            )
        finally:
            started = set(descendants(os.getpid())) - set(before)
            helpers = [f"{one.number}:{one.started}" for one in map(identify, started) if one]
            command = [sys.executable, "-P", "-m", "rlcore.cluster.reaper", self.folder, *helpers]
            # In a session of its own, where no Ctrl-C reaches it.
            self._reaper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def actor_options(self, rank: int) -> dict[str, Any]:
        return {"num_cpus": self._threads, "num_gpus": self._gpus}

    def node(self, rank: int) -> str:
        return ""

    def has_left(self, rank: int) -> bool:
        return False

    def stop(self) -> None:
        ray.shutdown()
        assert self._reaper.stdin
        self._reaper.stdin.close()
        self._reaper.wait()


def _gpus_per_rank(ranks: int) -> int:
    if not torch.cuda.is_available():
        return 0
    if ranks > (here := torch.cuda.device_count()):
        message = f"{ranks} trainer ranks need a GPU each, this machine has {here}"
        remedy = f"gpus_per_node: {here}, or --cluster ray where a Ray cluster with more runs"
        raise fail("cluster.gpus_per_node", message, remedy)
    return 1


def _short_folder() -> Path:
    """A new folder for temporary files. Raises RlcoreError where none with a short path can be made."""
    parent = get_default_system_temp_dir()
    if len(parent) > _LONGEST_PARENT:
        raise fail("TMPDIR", f"{parent} is too long a path for the sockets of Ray", "TMPDIR of a shorter path")
    return Path(tempfile.mkdtemp(prefix="rlcore-", dir=parent))
