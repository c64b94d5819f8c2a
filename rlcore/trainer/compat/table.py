"""Every name of another library that rlcore replaces: when, by what, and why."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from types import FunctionType
from typing import Any

import torch

from rlcore.models import local_te
from rlcore.models.rotary import rotate_packed
from rlcore.trainer.compat import device, transformer_engine
from rlcore.trainer.compat.adam import Adam

Condition = Callable[[], bool]


def without_cuda() -> bool:
    return not torch.cuda.is_available()


def always() -> bool:
    return True


def without_transformer_engine() -> bool:
    return importlib.util.find_spec("transformer_engine") is None


def without_fused_adam() -> bool:
    return without_transformer_engine() and importlib.util.find_spec("apex") is None


@dataclass(frozen=True)
class Patch:
    """One replaced name: `target` is "module:attribute", with dots inside the attribute for members.

    `missing` says that the library itself lacks the name, which is then what the patch mends.
    """

    target: str
    value: Any
    needed: Condition
    why: str
    missing: bool = False

    def owner(self) -> tuple[Any, str]:
        """The object that holds the name, and the name's last part."""
        module, _, path = self.target.partition(":")
        *parents, name = path.split(".")
        return reduce(getattr, parents, importlib.import_module(module)), name

    def apply(self) -> None:
        setattr(*self.owner(), _distinct(self.value))


def _distinct(value: Any) -> Any:
    """Copy a function: torch.compile keeps rules per function object and refuses one under two names."""
    if not isinstance(value, FunctionType):
        return value
    return FunctionType(
        value.__code__, value.__globals__, value.__name__, value.__defaults__, value.__closure__
    )


def _without_cuda(why: str, values: dict[str, Any]) -> tuple[Patch, ...]:
    return tuple(Patch(target, value, without_cuda, why) for target, value in values.items())


def _spells_out_cuda(*modules: str) -> tuple[Patch, ...]:
    why = 'makes tensors with device="cuda" or pin_memory'
    return _without_cuda(why, {f"megatron.core.{module}:torch": device.TORCH for module in modules})


PATCHES: tuple[Patch, ...] = (
    *_without_cuda(
        "Megatron asks for its device, streams and events everywhere",
        {
            "torch.cuda:current_device": device.current_device,
            "torch.cuda:set_device": device.nothing,
            "torch.cuda:synchronize": device.nothing,
            "torch.cuda:get_device_capability": device.device_capability,
            "torch.cuda:Stream": device.NullStream,
            "torch.cuda:Event": device.NullEvent,
            "torch.cuda:current_stream": device.current_stream,
            "torch.cuda:default_stream": device.current_stream,
            "torch.cuda:stream": device.stream,
            "torch.cuda:set_stream": device.nothing,
            "torch.cuda.nvtx:range_push": device.nothing,
            "torch.cuda.nvtx:range_pop": device.nothing,
            "torch:Tensor.cuda": device.stay,
            "torch:Tensor.record_stream": device.nothing,
            "torch.nn:Module.cuda": device.stay,
        },
    ),
    *_without_cuda(
        "Megatron's random states are those of the CUDA generator",
        {
            "torch.cuda:manual_seed": device.manual_seed,
            "torch.cuda:get_rng_state": device.get_rng_state,
            "torch.cuda:set_rng_state": device.set_rng_state,
            "torch.cuda.random:get_rng_state": device.get_rng_state,
            "torch.cuda.random:set_rng_state": device.set_rng_state,
            "megatron.core.tensor_parallel.random:_set_cuda_rng_state": device.set_rng_state,
        },
    ),
    *_without_cuda(
        "optimizers choose by names of CUDA tensor types",
        {
            "torch:Tensor.type": device.cuda_type_name,
            "torch.cuda:FloatTensor": torch.FloatTensor,
            "torch.cuda:HalfTensor": torch.HalfTensor,
            "torch.cuda:BFloat16Tensor": torch.BFloat16Tensor,
        },
    ),
    *_spells_out_cuda(
        "dist_checkpointing.exchange_utils",
        "dist_checkpointing.strategies.state_dict_saver",
        "distributed.param_and_grad_buffer",
        "models.common.embeddings.rope_utils",
        "optimizer.clip_grads",
        "optimizer.grad_scaler",
        "optimizer.optimizer",
        "pipeline_parallel.schedules",
        "tensor_parallel.data",
        "transformer.moe.moe_utils",
        "transformer.utils",
        "utils",
    ),
    *_without_cuda(
        "modules imported later must not compile their small functions either",
        {"megatron.core.jit:jit_fuser": importlib.import_module("megatron.core.jit").noop_decorator},
    ),
    Patch(
        "megatron.core.models.common.embeddings.rope_utils:_apply_rotary_pos_emb_thd",
        rotate_packed,
        always,
        "Megatron's, where it is not fused, knows one context-parallel layout and makes a dozen passes",
    ),
    *_without_cuda(
        "the all-to-all dispatcher needs split sizes as numbers, and gets them only from a CUDA tensor",
        {
            "megatron.core.transformer.moe.moe_utils:maybe_move_tensor_to_cpu": device.keep_on_cpu,
            "megatron.core.transformer.moe.token_dispatcher:maybe_move_tensor_to_cpu": device.keep_on_cpu,
        },
    ),
    Patch(
        "megatron.core.models.gpt.gpt_layer_specs:TESpecProvider",
        local_te.LocalSpecProvider,
        without_transformer_engine,
        "TransformerEngine's layer specs, built from torch-only modules with the same parameter names",
        missing=True,
    ),
    Patch(
        "megatron.core.models.gpt.gpt_layer_specs:TENorm",
        local_te.LocalNorm,
        without_transformer_engine,
        "the final norm of those specs",
        missing=True,
    ),
    Patch(
        "megatron.core.transformer.multi_latent_attention:TELinear",
        local_te.ReplicatedLinear,
        without_transformer_engine,
        "isinstance() against None; and replicated down-projections, without which TP gives wrong gradients",
    ),
    Patch(
        "megatron.core.transformer.moe.moe_utils:te_general_gemm",
        None,
        without_transformer_engine,
        "the router in fp32 asks for it by name",
        missing=True,
    ),
    *(
        Patch(
            f"megatron.core.tensor_parallel.random:{name}",
            value,
            without_transformer_engine,
            "selective recomputation asks for FP8 state though FP8 is off",
            missing=True,
        )
        for name, value in (
            ("FP8GlobalStateManager", transformer_engine.NoFP8),
            ("activation_recompute_forward", transformer_engine.no_context),
            ("fp8_autocast", transformer_engine.no_context),
        )
    ),
    *(
        Patch(
            f"megatron.core.optimizer{target}",
            value,
            without_fused_adam,
            "the distributed optimizer resumes only from the state layout of a fused Adam",
        )
        for target, value in (
            (":Adam", Adam),
            (":USING_PYTORCH_OPTIMIZER", False),
            (".distrib_optimizer:Adam", Adam),
            (".distrib_optimizer:HAVE_APEX_OR_TE", True),
            (".distrib_optimizer:USING_APEX_OPTIMIZER", True),
        )
    ),
)
