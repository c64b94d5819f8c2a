"""Stands in for SGLang's kernels on a CPU without AMX: what its Python code imports by name, in plain torch.

Only servers that the tests start see it. Of all kernels such a server calls one; the others say so when called.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch

__version__ = "0.0.0+tests"


def assign_req_to_token_pool_cpu(
    rows: torch.Tensor,
    table: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    slots: torch.Tensor,
    *_: Any,
) -> None:
    """Write to each request's row of the table the cache slots of its tokens from start to end."""
    lengths = (ends - starts).tolist()
    for row, start, part in zip(rows.tolist(), starts.tolist(), slots.split(lengths), strict=True):
        table[row, start : start + len(part)] = part.to(table.dtype)


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"kernel {name} does not run on a CPU")

    return missing
