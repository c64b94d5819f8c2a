"""What an indexer learns from: that its scores spread over the chosen keys as attention itself does.

DeepSeek-V3.2's report, section 2.1, for the stage of training in which attention is sparse. Gradients are found
along with the loss, a block of queries at a time, so that nothing as large as chosen keys is kept.
Axes: s queries, T keys of everybody, i index heads, d widths, k chosen keys.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlcore_glm52_dsa.selection import index_scores
from rlcore_glm52_dsa.sparse import blocks


def divergence(
    query_sid: Tensor, key_Td: Tensor, weight_si: Tensor, index_sk: Tensor, mass_sk: Tensor, share_s: Tensor
) -> Tensor:
    """Σ_s share_s · KL(p_s ‖ softmax of the index scores of query s), over its chosen keys, in nats.

    p_s is `mass_sk`, the attention that keys get from all heads, as shares of its sum. Differentiable in
    queries, keys and weights of the indexer. -1 in `index_sk` is no key, and has no mass.
    """
    return _Divergence.apply(query_sid, key_Td, weight_si, index_sk, mass_sk, share_s)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_sid: Tensor,
        key_Td: Tensor,
        weight_si: Tensor,
        index_sk: Tensor,
        mass_sk: Tensor,
        share_s: Tensor,
    ) -> Tensor:
        query_grad, weight_grad = torch.empty_like(query_sid), torch.empty_like(weight_si)
        key_grad_Td = torch.zeros_like(key_Td, dtype=torch.float32)
        total = share_s.new_zeros(())
        for rows in blocks(query_sid, index_sk):
            place = index_sk[rows].clamp(min=0).flatten()
            key_skd = key_Td.index_select(0, place).float().view(*index_sk[rows].shape, -1)
            leaves = [x.detach().requires_grad_() for x in (query_sid[rows].float(), key_skd, weight_si[rows])]
            with torch.enable_grad():
                loss = (share_s[rows] * _divergence(*leaves, index_sk[rows], mass_sk[rows])).sum()
            query_grad[rows], key_grad_skd, weight_grad[rows] = torch.autograd.grad(loss, leaves)
            key_grad_Td.index_add_(0, place, key_grad_skd.flatten(0, 1))
            total += loss.detach()
        ctx.save_for_backward(query_grad, key_grad_Td.to(key_Td.dtype), weight_grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*(grad * found for found in ctx.saved_tensors), None, None, None)


def _divergence(
    query_sid: Tensor, key_skd: Tensor, weight_si: Tensor, index_sk: Tensor, mass_sk: Tensor
) -> Tensor:
    """The divergence of each query [s], from its own keys."""
    score_sk = index_scores(query_sid, key_skd, weight_si).masked_fill(index_sk < 0, -torch.inf)
    log_q_sk = score_sk.log_softmax(-1).masked_fill(index_sk < 0, 0.0)
    return F.kl_div(log_q_sk, mass_sk / mass_sk.sum(-1, keepdim=True), reduction="none").sum(-1)
