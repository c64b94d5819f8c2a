"""Linear layers by oneDNN, whose float32 products on CPUs are faster than those of torch.matmul's BLAS."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear(x: Tensor, weight_oi: Tensor, bias_o: Tensor | None = None) -> Tensor:
    """Return x [..., i] times the transposed weight [o, i], plus the bias, like torch's function."""
    if has_own_products(weight_oi):
        return _Linear.apply(x, weight_oi, bias_o)
    return F.linear(x, weight_oi, bias_o)


def has_own_products(weight: Tensor) -> bool:
    """Whether `linear` multiplies by this weight in another way than torch."""
    return (
        weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    )


class _Linear(torch.autograd.Function):
    """The weight's gradient stays with torch.mm: oneDNN would first copy both of its factors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_oi: Tensor, bias_o: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight_oi)
        return _times_transposed(x, weight_oi, bias_o)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight_oi = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_to = grad.flatten(0, -2)
        return (
            _times_transposed(grad, weight_oi.t()) if needs_x else None,
            grad_to.t().mm(x.flatten(0, -2)) if needs_weight else None,
            grad_to.sum(0) if needs_bias else None,
        )


def _times_transposed(x: Tensor, weight_oi: Tensor, bias_o: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight_oi, bias_o, "none", [], "")
