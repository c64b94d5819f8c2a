"""What Megatron-Core 0.16.1 forgets to define where TransformerEngine is absent (mended upstream in 0.17.1)."""

from contextlib import nullcontext
from typing import Any


class NoFP8:
    """Stand in for TransformerEngine's FP8GlobalStateManager: FP8 is never on."""

    @staticmethod
    def is_fp8_enabled() -> bool:
        return False

    @staticmethod
    def get_fp8_recipe() -> None:
        return None


def no_context(*args: Any, **kwargs: Any) -> nullcontext[None]:
    """Stand in for TransformerEngine's context managers around recomputation."""
    return nullcontext()
