"""Which functions choose keys and attend to them: the torch reference, or fused kernels in Triton.

Kernels have the reference's signatures and are compared with it; a value of the recipe chooses them. Only then
is Triton imported, which not every build of torch brings along. In its interpreter (TRITON_INTERPRET=1) kernels
run on a CPU, slowly, in float32 and float16: it takes bfloat16 for integers.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from rlcore.errors import fail

PLACE = "model.options.kernels"
_MODULES = {
    "reference": ("rlcore_glm52_dsa.selection", "rlcore_glm52_dsa.sparse"),
    "triton": ("rlcore_glm52_dsa.kernels.selection", "rlcore_glm52_dsa.kernels.sparse"),
}


class Functions(NamedTuple):
    """`select(query_tid, key_Td, weight_ti, first_t, last_t, topk)` gives index_tk for
    `attend(query_thd, key_Td, index_tk, scale, value_width)`; see `selection.py` and `sparse.py`."""

    select: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]
    attend: Callable[[Tensor, Tensor, Tensor, float, int], Tensor]


def functions(name: str) -> Functions:
    """The functions called `reference` or `triton`; raises RlcoreError where the latter cannot run."""
    if name == "triton":
        _require_triton()
    selection, sparse = map(import_module, _MODULES[name])
    return Functions(selection.select, sparse.attend)


def _require_triton() -> None:
    if not find_spec("triton"):
        remedy = "a build of torch for CUDA, which brings Triton along, or kernels: reference"
        raise fail(PLACE, "Triton is not installed", remedy)
    from triton import knobs

    if not torch.cuda.is_available() and not knobs.runtime.interpret:
        raise fail(PLACE, "Triton's kernels need a CUDA device", "kernels: reference")
