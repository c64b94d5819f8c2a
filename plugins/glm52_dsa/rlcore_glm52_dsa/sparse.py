"""Attention of every query to its own choice of keys, one latent of which serves all heads, in plain torch.

The reference for fused kernels. Chosen keys are gathered for one block of queries at a time, forward and again
backward, so that memory grows with the number of queries alone.
Axes: t queries, T keys of everybody, h heads, k chosen keys, d widths, v widths of values.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Numbers in the gathered keys of a block: as many as a CPU keeps near, as a GPU takes to be busy.
_BLOCK = {"cpu": 2**19, "cuda": 2**26}


def attend(query_thd: Tensor, key_Td: Tensor, index_tk: Tensor, scale: float, value_width: int) -> Tensor:
    """Softmax attention over chosen keys, whose first `value_width` widths are the values: [t, h, v].

    `index_tk` are places of keys, -1 for none: a query that has none gets zeros, and gives no gradient. A key
    counts as often as it is named. Computed in float32; differentiable in queries and keys.
    """
    return _Attention.apply(query_thd, key_Td, index_tk, scale, value_width)


@torch.no_grad()
def attention_mass(query_thd: Tensor, key_Td: Tensor, index_tk: Tensor, scale: float) -> Tensor:
    """Attention that each chosen key gets from all heads together: float32 [t, k], 0 where none is chosen."""
    mass_tk = torch.empty(index_tk.shape, device=query_thd.device)
    for rows in blocks(query_thd, index_tk):
        score_thk, _ = _scores(query_thd[rows].float(), key_Td, index_tk[rows], scale)
        mass_tk[rows] = _probabilities(score_thk, _log_sum(score_thk)).sum(1)
    return mass_tk


class _Attention(torch.autograd.Function):
    """Scores are computed twice, so that they need not be kept."""

    @staticmethod
    def forward(
        ctx: Any, query_thd: Tensor, key_Td: Tensor, index_tk: Tensor, scale: float, value_width: int
    ) -> Tensor:
        out_thv = query_thd.new_empty(*query_thd.shape[:2], value_width)
        log_sum_th = query_thd.new_empty(query_thd.shape[:2], dtype=torch.float32)
        for rows in blocks(query_thd, index_tk):
            score_thk, key_tkd = _scores(query_thd[rows].float(), key_Td, index_tk[rows], scale)
            log_sum_th[rows] = _log_sum(score_thk)
            out_thv[rows] = _probabilities(score_thk, log_sum_th[rows]) @ key_tkd[..., :value_width]
        ctx.save_for_backward(query_thd, key_Td, index_tk, out_thv, log_sum_th)
        ctx.scale = scale
        return out_thv

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_thv: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """With p the probabilities: dscore = p · (dout · value - dout · out), and each key's parts add up."""
        query_thd, key_Td, index_tk, out_thv, log_sum_th = ctx.saved_tensors
        query_grad_thd = torch.empty_like(query_thd)
        key_grad_Td = torch.zeros_like(key_Td, dtype=torch.float32)
        rest = query_thd.shape[-1] - out_thv.shape[-1]
        for rows in blocks(query_thd, index_tk):
            query, grad = query_thd[rows].float(), grad_thv[rows].float()
            score_thk, key_tkd = _scores(query, key_Td, index_tk[rows], ctx.scale)
            p_thk = _probabilities(score_thk, log_sum_th[rows])
            mean_th1 = (grad * out_thv[rows]).sum(-1, keepdim=True)
            grad = F.pad(grad, (0, rest))
            score_grad_thk = (grad @ key_tkd.mT).sub_(mean_th1).mul_(p_thk).mul_(ctx.scale)
            query_grad_thd[rows] = score_grad_thk @ key_tkd
            # Both ways to a key in one product, and int64: small products and other indices are slow on CPUs.
            key_grad_tkd = torch.cat([score_grad_thk, p_thk], 1).mT @ torch.cat([query, grad], 1)
            place = index_tk[rows].clamp(min=0).flatten().long()
            key_grad_Td.index_add_(0, place, key_grad_tkd.flatten(0, 1))
        return query_grad_thd, key_grad_Td.to(key_Td.dtype), None, None, None


def blocks(query_thd: Tensor, index_tk: Tensor) -> Iterator[slice]:
    """Rows of queries whose gathered keys, and whose scores, are at most so many numbers."""
    _, h, d = query_thd.shape
    rows = max(1, _BLOCK[query_thd.device.type] // (index_tk.shape[1] * max(h, d)))
    return (slice(start, start + rows) for start in range(0, len(query_thd), rows))


def _scores(query_thd: Tensor, key_Td: Tensor, index_tk: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Scaled scores [t, h, k], -inf where no key is named, and the gathered keys [t, k, d]."""
    gathered = key_Td.index_select(0, index_tk.clamp(min=0).flatten()).float()
    key_tkd = gathered.view(*index_tk.shape, -1)
    score_thk = (query_thd @ key_tkd.mT).mul_(scale)
    return score_thk.masked_fill_((index_tk < 0)[:, None], -torch.inf), key_tkd


def _log_sum(score_thk: Tensor) -> Tensor:
    """Log of the sum of exponentials [t, h]; 0 where all scores are -inf, so that probabilities are zeros."""
    log_sum_th = score_thk.logsumexp(-1)
    return log_sum_th.masked_fill_(log_sum_th == -torch.inf, 0.0)


def _probabilities(score_thk: Tensor, log_sum_th: Tensor) -> Tensor:
    """Softmax, in place of the scores."""
    return score_thk.sub_(log_sum_th[..., None]).exp_()
