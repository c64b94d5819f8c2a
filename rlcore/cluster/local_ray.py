"""A Ray of our own on this machine, private to one run: it needs no network and ends with its process."""

import logging
import os
import shutil
import signal
import tempfile
from pathlib import Path

import ray


class LocalRay:
    """Started when made, ended by `stop`. `folder` is for files that live as long as it does."""

    def __init__(self, cpus: int, gpus: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rlcore-"))
        # Ray has no argument for this one: whether it reports its use to its makers.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        on_termination = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                "local",
                num_cpus=cpus,
                num_gpus=gpus,
                include_dashboard=False,
                namespace="rlcore",
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(self.folder),
                _node_ip_address="127.0.0.1",
            )
        except BaseException:
            self.stop()
            raise
        finally:
            # Ray exits on SIGTERM; a run saves first, and says how to go on.
            signal.signal(signal.SIGTERM, on_termination)

    def stop(self) -> None:
        ray.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)
