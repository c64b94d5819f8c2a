"""Attention of small models on a CPU: one product for queries, keys and values, one rotation for the first two.

Decoding small models costs as much as it has operations, and transformers' attention has dozens.
Large layers stay as they are: theirs are matrix products, each packed for its kernel.
Axes: t packed tokens, h query heads, p all heads, d widths of a head, r those rotated, i inputs, o outputs.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlcore.models.rotary import rotate_
from rlcore.rollout.local_cache import ForwardPlan, SlotCache, slot_attention
from rlcore.rollout.local_linear import LEAST_ELEMENTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TURNS = "turns"


class FusedAttention(nn.Module):
    """A transformers attention, but for `forward`; the weights of its projections are views of `qkv_oi`."""

    qkv_oi: Tensor
    qkv_o: Tensor | None
    neighbours: bool

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        *,
        slots: tuple[SlotCache, ForwardPlan],
        **_: object,
    ) -> tuple[Tensor, None]:
        """Attend as `slot_attention` does. `hidden_states` is [1, t, hidden], as is what is returned."""
        qkv_tpd = F.linear(hidden_states[0], self.qkv_oi, self.qkv_o).unflatten(1, (-1, self.head_dim))
        groups = self.k_proj.out_features // self.head_dim
        heads = qkv_tpd.shape[1] - 2 * groups
        if hasattr(self, "q_norm"):
            qkv_tpd[:, :heads] = self.q_norm(qkv_tpd[:, :heads])
            qkv_tpd[:, heads:-groups] = self.k_norm(qkv_tpd[:, heads:-groups])
        rotate_(qkv_tpd[:, :-groups], *self._turns(position_embeddings, slots[1]), self.neighbours)
        query, key, value = qkv_tpd.transpose(0, 1)[None].split([heads, groups, groups], 1)
        out_1thd, _ = slot_attention(self, query, key, value, None, self.scaling, slots=slots)
        return self.o_proj(out_1thd.flatten(2)), None

    def _turns(self, cos_and_sin: tuple[Tensor, Tensor], plan: ForwardPlan) -> tuple[Tensor, Tensor]:
        """Cosines and sines [t, 1, r] as `rotate_` takes them, made once a forward; they come in halves."""
        if TURNS not in plan.shared:
            cos, sin = (turn[0, :, None] for turn in cos_and_sin)
            plan.shared[TURNS] = (_neighbours(cos), _neighbours(sin)) if self.neighbours else (cos, sin)
        return plan.shared[TURNS]


def fuse_attention(model: "PreTrainedModel", *, neighbours: bool) -> None:
    """Turn the small fp32 attention layers of a CPU model into fused ones, in place.

    They must be grouped-query attention with rotated queries and keys, which may be normalised by head before.
    `neighbours` says whether the two numbers of a rotated pair stand side by side, or half of r apart.
    """
    for module in model.modules():
        if hasattr(module, "k_proj") and _gains(module):
            projections = module.q_proj, module.k_proj, module.v_proj
            module.qkv_oi = _joined([each.weight for each in projections])
            module.qkv_o = None if module.k_proj.bias is None else _joined([each.bias for each in projections])
            module.neighbours = neighbours
            module.__class__ = FusedAttention


def _gains(attention: Any) -> bool:
    weight = attention.q_proj.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() < LEAST_ELEMENTS


@torch.no_grad()
def _joined(parameters: list[nn.Parameter]) -> Tensor:
    """One tensor of all along axis 0, which become views of it: what is written to them is written there."""
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, whole.split([len(each) for each in parameters]), strict=True):
        parameter.data = part
    return whole


def _neighbours(turn_t1r: Tensor) -> Tensor:
    return turn_t1r[..., : turn_t1r.shape[-1] // 2].repeat_interleave(2, -1)
