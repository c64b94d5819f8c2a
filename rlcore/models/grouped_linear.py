"""One weight matrix per expert, in plain torch: TransformerEngine's grouped linear layers, names included.

Megatron's grouped experts are built from a column-parallel and a row-parallel one. Its token dispatcher sends
tokens and gathers over tensor-parallel ranks, so that here nothing communicates.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from megatron.core.dist_checkpointing.utils import replace_prefix_for_sharding
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from megatron.core.utils import divide
from torch import Tensor, nn


class GroupedLinear(nn.Module):
    """Linear layers of this rank's experts: `weight0`, `weight1`, …, each split along `split_axis`."""

    split_axis: ClassVar[int]

    def __init__(
        self,
        num_gemms: int,
        input_size: int,
        output_size: int,
        *,
        config: TransformerConfig,
        init_method: Callable[[Tensor], Any],
        pg_collection: ProcessGroupCollection,
        bias: bool = False,
        **_: Any,
    ) -> None:
        super().__init__()
        if bias:
            raise ValueError("experts have no biases without TransformerEngine")
        self.num_gemms = num_gemms
        self._groups = pg_collection
        shape = [output_size, input_size]
        shape[self.split_axis] = divide(shape[self.split_axis], pg_collection.expt_tp.size())
        for expert in range(num_gemms):
            weight = nn.Parameter(torch.empty(shape, dtype=config.params_dtype, device=local_device(config)))
            if config.perform_initialization:
                init_method(weight)
            # Each tensor-parallel rank holds experts, or parts of them, of its own: a norm counts them all.
            set_tensor_model_parallel_attributes(weight, True, self.split_axis, 1)
            # Gradients are summed over the ranks that hold the same experts; without EP those are all of DP.
            weight.allreduce = config.expert_model_parallel_size == 1
            self.register_parameter(f"weight{expert}", weight)

    def _weights(self) -> list[nn.Parameter]:
        return [self.get_parameter(f"weight{expert}") for expert in range(self.num_gemms)]

    def forward(self, x_ti: Tensor, tokens_per_expert: Sequence[int]) -> tuple[Tensor, None]:
        """Multiply tokens, sorted by expert, each by its expert's matrix: x [t, i] gives [t, o]."""
        multiply = in_one_kernel if self._has_kernel(x_ti) else one_by_one
        return multiply(x_ti, tokens_per_expert, self._weights()), None

    def _has_kernel(self, x_ti: Tensor) -> bool:
        """Whether a kernel for all experts beats a loop: on CPUs it does not, for weights have to be copied.

        CUDA has one for bf16 from capability 9.0 and torch 2.10 on; rows have to be multiples of 16 bytes.
        """
        return (
            x_ti.is_cuda
            and hasattr(F, "grouped_mm")
            and x_ti.dtype == torch.bfloat16
            and len(x_ti) > 0
            and all(size % 8 == 0 for size in self.weight0.shape)
            and torch.cuda.get_device_capability(x_ti.device) >= (9, 0)
        )

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Describe the weights for torch_dist checkpoints, where experts are an axis of their own."""
        experts = self.num_gemms * self._groups.ep.size()
        first = self.num_gemms * self._groups.ep.rank()
        sharded = {}
        for number, weight in enumerate(self._weights()):
            part = make_sharded_tensors_for_checkpoint(
                {"weight": weight},
                "",
                {"weight": self.split_axis},
                (*sharded_offsets, (len(sharded_offsets), first + number, experts)),
                tp_group=self._groups.expt_tp,
                dp_cp_group=(metadata or {})["dp_cp_group"],
            )
            replace_prefix_for_sharding(part, "", prefix)
            tensor = part["weight"]
            tensor.replica_id = (*tensor.replica_id[:2], self._groups.expt_dp.rank())
            sharded[f"{prefix}weight{number}"] = tensor
        return sharded


def one_by_one(x_ti: Tensor, tokens_per_expert: Sequence[int], weights_oi: Sequence[Tensor]) -> Tensor:
    """Multiply each expert's tokens [t, i] by its matrix, in a loop: [t, o]."""
    parts = x_ti.split(list(tokens_per_expert))
    return torch.cat([F.linear(x, weight) for x, weight in zip(parts, weights_oi, strict=True)])


def in_one_kernel(x_ti: Tensor, tokens_per_expert: Sequence[int], weights_oi: Sequence[Tensor]) -> Tensor:
    """`one_by_one` by torch's grouped matrix product; there is at least one token."""
    ends_e = torch.tensor(list(tokens_per_expert)).cumsum(0, dtype=torch.int32).to(x_ti.device)
    return _GroupedProduct.apply(x_ti, ends_e, *weights_oi)


class _GroupedProduct(torch.autograd.Function):
    """Copies the experts' matrices side by side for each product, and keeps no copy for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_ti: Tensor, ends_e: Tensor, *weights_oi: Tensor) -> Tensor:
        ctx.save_for_backward(x_ti, ends_e, *weights_oi)
        return F.grouped_mm(x_ti, torch.stack(weights_oi).mT, offs=ends_e)

    @staticmethod
    def backward(ctx: Any, grad_to: Tensor) -> tuple[Tensor | None, ...]:
        x_ti, ends_e, *weights_oi = ctx.saved_tensors
        grad_to = grad_to.contiguous()
        grad_ti = F.grouped_mm(grad_to, torch.stack(weights_oi), offs=ends_e)
        return grad_ti, None, *F.grouped_mm(grad_to.T, x_ti, offs=ends_e).unbind()


class ColumnParallelGroupedLinear(GroupedLinear):
    """TEColumnParallelGroupedLinear: rows are split."""

    split_axis = 0


class RowParallelGroupedLinear(GroupedLinear):
    """TERowParallelGroupedLinear: columns are split; the dispatcher sums what the ranks compute."""

    split_axis = 1


def local_device(config: TransformerConfig) -> torch.device | int | None:
    """None where Megatron initialises on the default device (a CPU, or meta), else this rank's GPU."""
    return None if config.use_cpu_initialization else torch.cuda.current_device()
