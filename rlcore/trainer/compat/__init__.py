"""Lets Megatron-Core run where CUDA or TransformerEngine is absent: the only part of rlcore that patches.

`install()` comes before the first import of megatron. Every name that it replaces stands in `table.PATCHES`.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rlcore.errors import fail

_installed = False


def install() -> None:
    """Apply every patch that this machine needs; later calls do nothing.

    Raises RlcoreError when megatron was imported first on a machine without CUDA: its functions would
    already be bound to torch.compile, which costs ten seconds at the first step.
    """
    global _installed
    if _installed:
        return
    if not torch.cuda.is_available() and "megatron.core" in sys.modules:
        raise fail(
            "megatron.core",
            "was imported before rlcore prepared it for a machine without CUDA",
            "call rlcore.trainer.compat.install() before anything that imports megatron",
        )
    with _quiet_import():
        from rlcore.trainer.compat.table import PATCHES

        for patch in PATCHES:
            if patch.needed():
                patch.apply()
    _installed = True


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Import megatron without its notes on absent libraries and, on a CPU, without compiled functions.

    Megatron decorates small functions with torch.compile while it is imported. Compiling them on a CPU takes
    longer than running them ever would; the rest of the process keeps its torch.compile.
    """
    compile_function = torch.compile
    if not torch.cuda.is_available():
        torch.compile = _leave_as_is
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import megatron.core  # noqa: F401

            yield
    finally:
        torch.compile = compile_function


def _leave_as_is(function=None, **options):  # noqa: ANN001, ANN003, ANN202
    """Stand in for torch.compile, bare or with arguments."""
    return _leave_as_is if function is None else function
