"""Sends between interleaved stages that leave late, as where gloo's thread, or a GPU's link, gets no time.

Like a real send they hold the tensor, not the memory that it had when it was sent: what is freed or written to
before they leave arrives as something else.
"""

import ctypes
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import p2p_communication

_DELAY = 0.02


class _LateSend:
    def __init__(self, pool: ThreadPoolExecutor, tensor: torch.Tensor, **where: Any) -> None:
        memory = (ctypes.c_float * tensor.numel()).from_address(tensor.data_ptr())
        self._done = pool.submit(_send_late, memory, where)

    def wait(self) -> None:
        self._done.result()


def _send_late(memory: Any, where: dict[str, Any]) -> None:
    time.sleep(_DELAY)
    _isend(tensor=torch.frombuffer(memory, dtype=torch.float32), **where).wait()


_isend, _p2p_ops = dist.isend, p2p_communication._p2p_ops


@contextmanager
def late_sends() -> Iterator[None]:
    """While the body runs, odd stages send late. Even ones share a group with messages of shapes, in order."""
    # One thread: messages stay in their order.
    with ThreadPoolExecutor(1) as pool:

        def isend(*, group: dist.ProcessGroup, **send: Any) -> Any:
            if group is dist.group.WORLD:
                return _LateSend(pool, group=group, **send)
            return _isend(group=group, **send)

        def p2p_ops(**arguments: Any) -> Any:
            # Messages of shapes are told from sends of tensors by torch, which compares functions.
            dist.isend = isend
            try:
                return _p2p_ops(**arguments)
            finally:
                dist.isend = _isend

        p2p_communication._p2p_ops = p2p_ops
        try:
            yield
        finally:
            p2p_communication._p2p_ops = _p2p_ops
