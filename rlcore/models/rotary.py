"""Rotary position embedding (https://arxiv.org/abs/2104.09864) of packed sequences in few passes over memory.

Stands in for Megatron's own where no fused kernel exists: that one makes a dozen passes over queries and keys.
Every product and sum is rounded by itself, as the published models do it: a complex product would be quicker
still, but fuses them, and engine and trainer would no longer agree to the last bit.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup


def rotate_packed(
    x_thd: Tensor,
    cu_seqlens: Tensor,
    angles: Tensor,
    rotary_interleaved: bool = False,
    multi_latent_attention: bool = False,
    mscale: float = 1.0,
    cp_group: ProcessGroup | None = None,
) -> Tensor:
    """Rotate the first r of d widths of each head by its token's position in its own sequence.

    `angles` are Megatron's, [positions, 1, 1, r], each written twice: side by side where the pairs to be
    rotated are, else half a width apart. Latent attention's come in side by side and leave half a width apart.
    """
    if cp_group is not None and cp_group.size() > 1:
        raise ValueError("rotation in plain torch does not split sequences over context-parallel ranks")
    width = angles.shape[-1]
    once_pr = angles[:, 0, 0, ::2] if rotary_interleaved else angles[:, 0, 0, : width // 2]
    position_t = _positions(cu_seqlens, len(x_thd))
    cos_t1r, sin_t1r = ((turn * mscale)[position_t, None] for turn in (once_pr.cos(), once_pr.sin()))
    wide_thd = x_thd.to(torch.promote_types(x_thd.dtype, torch.float32))
    neighbours = (rotary_interleaved or multi_latent_attention, rotary_interleaved)
    return _Rotation.apply(wide_thd, cos_t1r, sin_t1r, *neighbours).to(x_thd.dtype)


class _Rotation(torch.autograd.Function):
    """The gradient of a rotation is the rotation back."""

    @staticmethod
    def forward(
        ctx: Any, x_thd: Tensor, cos_t1r: Tensor, sin_t1r: Tensor, neighbours_in: bool, neighbours_out: bool
    ) -> Tensor:
        ctx.save_for_backward(cos_t1r, sin_t1r)
        ctx.neighbours = neighbours_out, neighbours_in
        return _rotated(x_thd, cos_t1r, sin_t1r, neighbours_in, neighbours_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_thd: Tensor) -> tuple[Tensor, None, None, None, None]:
        cos_t1r, sin_t1r = ctx.saved_tensors
        return _rotated(grad_thd, cos_t1r, -sin_t1r, *ctx.neighbours), None, None, None, None


def _rotated(
    x_thd: Tensor, cos_t1r: Tensor, sin_t1r: Tensor, neighbours_in: bool, neighbours_out: bool
) -> Tensor:
    out_thd = x_thd.clone(memory_format=torch.contiguous_format)
    a, b = _pairs(x_thd, cos_t1r.shape[-1], neighbours_in)
    out_a, out_b = _pairs(out_thd, cos_t1r.shape[-1], neighbours_out)
    torch.mul(a, cos_t1r, out=out_a).sub_(b * sin_t1r)
    torch.mul(b, cos_t1r, out=out_b).add_(a * sin_t1r)
    return out_thd


def _pairs(x_thd: Tensor, pairs: int, neighbours: bool) -> tuple[Tensor, Tensor]:
    """Views [t, h, pairs] of the first and the second number of each pair."""
    if neighbours:
        return x_thd[..., : 2 * pairs : 2], x_thd[..., 1 : 2 * pairs : 2]
    return x_thd[..., :pairs], x_thd[..., pairs : 2 * pairs]


def _positions(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Position of each packed token in its own sequence, int64 [t]."""
    lengths = cu_seqlens.diff()
    starts_t = cu_seqlens[:-1].long().repeat_interleave(lengths, output_size=tokens)
    return torch.arange(tokens, device=cu_seqlens.device) - starts_t
