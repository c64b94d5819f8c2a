"""Torch-only stand-ins for the TransformerEngine modules of Megatron's layer specs, for CPUs and plain GPUs.

They take the same constructor calls and own parameters of the same names, so that bridges, checkpoints and
weight transport are one code path whether TransformerEngine is installed or not.
"""

from typing import Any

import torch
from megatron.core.models.backends import BackendSpecProvider
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import TEGroupedMLP
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from rlcore.models.attention import PackedAttention
from rlcore.models.grouped_linear import ColumnParallelGroupedLinear, RowParallelGroupedLinear, local_device
from rlcore.models.rms_norm import rms_norm


class LocalNorm(nn.Module):
    """TENorm, for RMSNorm. Its weight is tagged: Megatron sums its gradient over sequence-parallel ranks."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        if config.normalization != "RMSNorm":
            raise ValueError(f"only RMSNorm runs without TransformerEngine, not {config.normalization}")
        self.eps = eps
        self.weight = nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=local_device(config))
        )
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of x [..., h]."""
        return rms_norm(x, self.weight, self.eps)


class ReplicatedLinear(nn.Linear):
    """TELinear in its `duplicated` mode: each TP rank holds all of it and, under SP, sees its own tokens."""

    def __init__(
        self, input_size: int, output_size: int, *, config: TransformerConfig, bias: bool = False, **_: Any
    ) -> None:
        super().__init__(
            input_size, output_size, bias=bias, dtype=config.params_dtype, device=local_device(config)
        )
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return super().forward(x), None


class NormColumnParallelLinear(ColumnParallelLinear):
    """TELayerNormColumnParallelLinear: RMSNorm, then a linear layer whose rows are split over TP ranks."""

    def __init__(self, input_size: int, output_size: int, *, config: TransformerConfig, **kwargs: Any) -> None:
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.eps = config.layernorm_epsilon
        self.layer_norm_weight = nn.Parameter(
            torch.ones(input_size, dtype=config.params_dtype, device=self.weight.device)
        )
        self.layer_norm_weight.sequence_parallel = config.sequence_parallel

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        return super().forward(rms_norm(input_, self.layer_norm_weight, self.eps), *args, **kwargs)


class LocalSpecProvider(BackendSpecProvider):
    """TESpecProvider without TransformerEngine."""

    def linear(self) -> type:
        return ReplicatedLinear

    def column_parallel_linear(self) -> type:
        return ColumnParallelLinear

    def row_parallel_linear(self) -> type:
        return RowParallelLinear

    def fuse_layernorm_and_linear(self) -> bool:
        return True

    def column_parallel_layer_norm_linear(self) -> type:
        return NormColumnParallelLinear

    def layer_norm(self, rms_norm: bool = False, for_qk: bool = False) -> type:
        return LocalNorm

    def core_attention(self) -> type:
        return PackedAttention

    def grouped_mlp_modules(
        self, moe_use_grouped_gemm: bool, moe_use_legacy_grouped_gemm: bool
    ) -> tuple[type, MLPSubmodules]:
        return TEGroupedMLP, MLPSubmodules(
            linear_fc1=ColumnParallelGroupedLinear, linear_fc2=RowParallelGroupedLinear
        )

    def activation_func(self) -> None:
        return None
