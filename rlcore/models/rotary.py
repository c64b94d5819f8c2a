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

    The offsets must be those of PackedSequences: they carry the positions, whichever tokens this rank has.
    `angles` are Megatron's, [positions, 1, 1, r], each written twice: side by side where the pairs to be
    rotated are, else half a width apart. Latent attention's come in side by side and leave half a width apart.
    """
    neighbours = (rotary_interleaved or multi_latent_attention, rotary_interleaved)
    return rotate(x_thd, cu_seqlens.position_t, angles, *neighbours, mscale=mscale)


def rotate(
    x_thd: Tensor,
    position_t: Tensor,
    angles: Tensor,
    neighbours_in: bool,
    neighbours_out: bool,
    *,
    mscale: float = 1.0,
) -> Tensor:
    """Rotate the first r of d widths of each head by its token's position; `angles` are Megatron's.

    The numbers of a pair come in and leave side by side (`neighbours`), or else half of r apart.
    """
    cos_t1r, sin_t1r = ((turn * mscale)[position_t, 0] for turn in (angles.cos(), angles.sin()))
    wide_thd = x_thd.to(torch.promote_types(x_thd.dtype, torch.float32))
    return _Rotation.apply(wide_thd, cos_t1r, sin_t1r, neighbours_in, neighbours_out).to(x_thd.dtype)


class _Rotation(torch.autograd.Function):
    """The gradient of a rotation is the rotation back."""

    @staticmethod
    def forward(
        ctx: Any, x_thd: Tensor, cos_t1r: Tensor, sin_t1r: Tensor, neighbours_in: bool, neighbours_out: bool
    ) -> Tensor:
        ctx.save_for_backward(cos_t1r, sin_t1r)
        ctx.neighbours = neighbours_in, neighbours_out
        out_thd = _laid_out(_copy(x_thd), cos_t1r.shape[-1], neighbours_in, neighbours_out)
        rotate_(out_thd, cos_t1r, sin_t1r, neighbours_out)
        return out_thd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_thd: Tensor) -> tuple[Tensor, None, None, None, None]:
        cos_t1r, sin_t1r = ctx.saved_tensors
        neighbours_in, neighbours_out = ctx.neighbours
        out_thd = _copy(grad_thd)
        rotate_(out_thd, cos_t1r, -sin_t1r, neighbours_out)
        return _laid_out(out_thd, cos_t1r.shape[-1], neighbours_out, neighbours_in), None, None, None, None


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def rotate_(x_thd: Tensor, cos_t1r: Tensor, sin_t1r: Tensor, neighbours: bool) -> None:
    """Rotate the first r widths in place: x·cos + turned(x)·sin; a quarter turn makes (-b, a) of a pair (a, b).

    Only the turn goes through memory number by number; the arithmetic has whole rows.
    """
    x_thr = x_thd[..., : cos_t1r.shape[-1]]
    turned_thr = torch.empty_like(x_thr, memory_format=torch.contiguous_format)
    (a, b), (turned_a, turned_b) = _pairs(x_thr, neighbours), _pairs(turned_thr, neighbours)
    torch.neg(b, out=turned_a)
    turned_b.copy_(a)
    x_thr.mul_(cos_t1r).add_(turned_thr.mul_(sin_t1r))


def _laid_out(x_thd: Tensor, width: int, neighbours_in: bool, neighbours_out: bool) -> Tensor:
    """Move the numbers of the pairs in the first `width` widths to where they are to stand."""
    if neighbours_in == neighbours_out:
        return x_thd
    out_thd = x_thd.clone()
    sources, targets = _pairs(x_thd[..., :width], neighbours_in), _pairs(out_thd[..., :width], neighbours_out)
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
    return out_thd


def _pairs(x_thr: Tensor, neighbours: bool) -> tuple[Tensor, Tensor]:
    """Views [t, h, r / 2] of the first and the second number of each pair."""
    if neighbours:
        return x_thr[..., ::2], x_thr[..., 1::2]
    a, b = x_thr.chunk(2, dim=-1)
    return a, b
