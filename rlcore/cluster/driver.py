"""Become the driver of a Ray, our own or a joined one: it stays quiet, and SIGTERM stays ours."""

import logging
import signal
from typing import Any

import ray


def connect(address: str, **options: Any) -> None:
    """Call `ray.init` with what all runs want. Raises as it does."""
    # What Ray prints when a worker or a node dies, the group says in one line, with the rank.
    ray._private.worker.print_to_stdstream = _be_quiet
    on_termination = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, namespace="rlcore", log_to_driver=False, logging_level=logging.ERROR, **options)
    finally:
        # Ray exits on SIGTERM; a run saves first, and says how to go on.
        signal.signal(signal.SIGTERM, on_termination)


def _be_quiet(*args: Any, **kwargs: Any) -> None:
    """Stand in for a function that prints."""
