"""What Megatron finds in place of a CUDA device on a machine that has none.

Each function stands in for one of torch.cuda's, all of which raise there; so that nothing that works changes.
"""

import types
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

CPU = torch.device("cpu")


class NullStream:
    """A stream on a device that has none: work is done when a call returns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record_event(self, event: "NullStream | None" = None) -> "NullStream":
        return event or NullEvent()

    def query(self) -> bool:
        return True

    def do_nothing(self, *args: Any) -> None:
        pass

    record = wait = wait_event = wait_stream = synchronize = do_nothing


class NullEvent(NullStream):
    """An event on such a device."""


STREAM = NullStream()


def nothing(*args: Any, **kwargs: Any) -> None:
    """Take any arguments, do nothing."""


def current_device() -> torch.device:
    return CPU


def current_stream(*args: Any) -> NullStream:
    return STREAM


def stream(*args: Any) -> nullcontext[None]:
    return nullcontext()


def device_capability(*args: Any) -> tuple[int, int]:
    return (0, 0)


def manual_seed(seed: int) -> None:
    """Seed the generator that all CPU randomness draws from, as Megatron expects of its device."""
    torch.default_generator.manual_seed(int(seed))


def get_rng_state(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.get_rng_state()


def set_rng_state(state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    torch.set_rng_state(state)


def stay(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand in for `.cuda()`: the tensor or module is where it has to be."""
    return self


_type = torch.Tensor.type


def cuda_type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Stand in for Tensor.type: Megatron's optimizers compare its answer with names of CUDA types."""
    answer = _type(self, *args, **kwargs)
    return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer


def keep_on_cpu(value: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Stand in for maybe_move_tensor_to_cpu, which returns a tensor for numpy when it is on the CPU already."""
    return value.numpy() if as_numpy and torch.is_tensor(value) else value


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Make a tensor factory read device="cuda" as the CPU, and forget pin_memory."""

    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        kwargs.pop("pin_memory", None)
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = CPU
        return factory(*args, **kwargs)

    return make


def _torch_without_cuda() -> types.ModuleType:
    """Copy the torch module with factories that know no CUDA, for those modules that spell out the device."""
    copy = types.ModuleType("torch")
    copy.__dict__.update(torch.__dict__)
    copy.__dict__["__getattr__"] = lambda name: getattr(torch, name)
    for name in ("tensor", "zeros", "ones", "empty", "empty_like"):
        setattr(copy, name, _on_cpu(getattr(torch, name)))
    return copy


TORCH = _torch_without_cuda()
