"""RMSNorm (https://arxiv.org/abs/1910.07467) in few passes over memory, for devices without a fused kernel."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight_h: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) * weight over the last axis of x [..., h], in x's type but computed in float32."""
    if x.is_cuda:
        return F.rms_norm(x, weight_h.shape, weight_h, eps)
    return _RMSNorm.apply(x, weight_h, eps)


class _RMSNorm(torch.autograd.Function):
    """torch composes it on CPUs of ten operations, the gradient of each of which is a pass or two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_h: Tensor, eps: float) -> Tensor:
        wide = _widened(x)
        scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_h, scale)
        return (wide * scale).mul_(weight_h).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """With r = 1 / rms(x): dx = r·g·w - x·r³·mean(g·w·x), dw = Σ r·g·x."""
        x, weight_h, scale = ctx.saved_tensors
        wide, grad = _widened(x), _widened(grad)
        product = grad * wide
        mean = (product @ _widened(weight_h)).unsqueeze(-1) / len(weight_h)
        x_grad = (grad * weight_h).mul_(scale).addcmul_(wide, scale.pow(3).mul_(mean), value=-1.0)
        # A plain sum, since it is a pairwise one: over many tokens a matrix product loses a digit.
        weight_grad_h = product.mul_(scale).flatten(0, -2).sum(0)
        return x_grad.to(x.dtype), weight_grad_h.to(weight_h.dtype), None


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
