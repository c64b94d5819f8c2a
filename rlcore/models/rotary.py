"""Rotary position embedding (https://arxiv.org/abs/2104.09864) of packed sequences as one complex product.

Stands in for Megatron's own where no fused kernel exists: that one makes a dozen passes over queries and keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
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
    turns_pr = torch.polar(torch.full_like(once_pr, mscale), once_pr)
    turns_t1r = turns_pr.index_select(0, _positions(cu_seqlens, len(x_thd)))[:, None]
    wide_thd = x_thd.to(torch.promote_types(x_thd.dtype, torch.float32))
    if rotary_interleaved:
        return _rotated_pairs(wide_thd, turns_t1r).to(x_thd.dtype)
    rotated, rest = wide_thd[..., :width], wide_thd[..., width:]
    if multi_latent_attention:
        pairs = torch.view_as_complex(rotated.unflatten(-1, (-1, 2)))
    else:
        pairs = torch.complex(*rotated.chunk(2, dim=-1))
    turned = pairs * turns_t1r
    return torch.cat((turned.real, turned.imag, rest), dim=-1).to(x_thd.dtype)


def _rotated_pairs(x_thd: Tensor, turns_t1r: Tensor) -> Tensor:
    """Rotate neighbours; those beyond the rotated widths are multiplied by 1, which is cheaper than a cut."""
    pairs = torch.view_as_complex(x_thd.unflatten(-1, (-1, 2)))
    turns_t1d = F.pad(turns_t1r, (0, pairs.shape[-1] - turns_t1r.shape[-1]), value=1.0)
    return torch.view_as_real(pairs * turns_t1d).flatten(-2)


def _positions(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Position of each packed token in its own sequence, int64 [t]."""
    lengths = cu_seqlens.diff()
    starts_t = cu_seqlens[:-1].long().repeat_interleave(lengths, output_size=tokens)
    return torch.arange(tokens, device=cu_seqlens.device) - starts_t
