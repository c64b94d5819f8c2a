"""Experts of the local engine, computed in the order in which the trainer does, so that both round alike.

A token's weight multiplies its expert's activation, before the way down, and what experts give is added up in
their order. transformers has it the other way round. Axes: t tokens, k choices of each, e experts, p pairs of a
token and an expert, sorted by expert, d widths.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.moe import ExpertsInterface

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXPERTS = "rlcore_experts"


def align_experts(model: "PreTrainedModel") -> None:
    """Have a transformers model's experts computed so, if they are gated and plain, as Megatron's are."""
    experts = [module for module in model.modules() if hasattr(module, "is_concatenated")]
    if experts and all(map(_is_plain, experts)):
        model.set_experts_implementation(EXPERTS)


def _is_plain(experts: nn.Module) -> bool:
    odd = experts.has_bias or experts.is_transposed or experts.has_post_expert_norm
    return experts.has_gate and experts.is_concatenated and not odd


def aligned_experts(module: nn.Module, hidden_td: Tensor, choice_tk: Tensor, weight_tk: Tensor) -> Tensor:
    """The weighted sum [t, d] of what its experts make of each token; transformers calls it for its own."""
    order_p = choice_tk.flatten().argsort(stable=True)
    token_p = order_p.div(choice_tk.shape[1], rounding_mode="floor")
    count_e = choice_tk.flatten().bincount(minlength=module.num_experts).tolist()
    gated_pd = module._apply_gate(_multiply(hidden_td[token_p], count_e, module.gate_up_proj))
    weighted_pd = gated_pd * weight_tk.flatten()[order_p, None].to(gated_pd.dtype)
    out_pd = _multiply(weighted_pd, count_e, module.down_proj)
    return torch.zeros_like(hidden_td).index_add_(0, token_p, out_pd)


def _multiply(x_pi: Tensor, count_e: Sequence[int], weight_eoi: Tensor) -> Tensor:
    parts = zip(x_pi.split(count_e), weight_eoi, strict=True)
    return torch.cat([F.linear(x, weight_oi) for x, weight_oi in parts if len(x)])


ExpertsInterface.register(EXPERTS, aligned_experts)
