"""Megatron's router of tokens to experts, for packed micro-batches: only tokens of samples count.

Padding is there for the layout's sake, and so are fillers. They are routed like any token, but must not show in
statistics nor move correction biases.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.moe_utils import (
    MoEAuxLossAutoScaler,
    topk_routing_with_score_function,
    z_loss_func,
)
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn


class PackedRouter(TopKRouter):
    """With a correction bias, counts what it chooses while gradients are on: once a step, even if recomputed.

    `local_tokens_per_expert` [e] is Megatron's own count, which the bias moves by. `local_corrections` [e] are
    those of its tokens that would not have chosen the expert without the bias.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.enable_expert_bias:
            corrections = torch.zeros_like(self.local_tokens_per_expert)
            self.register_buffer("local_corrections", corrections, persistent=False)

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Choose experts: probabilities and choices, both [t, e]. `padding_mask` is about all TP ranks' tokens.

        Auxiliary losses take padding for tokens: of nothing but padding Megatron would make them NaN.
        """
        probs_te, chosen_te = super().routing(logits)
        if self.enable_expert_bias and torch.is_grad_enabled():
            self._count(logits.detach().flatten(0, -2), chosen_te, padding_mask)
        return probs_te, chosen_te

    def attach_and_log_load_balancing_loss(
        self,
        activation: Tensor,
        aux_loss_coeff: float,
        aux_loss: Tensor,
        aux_loss_name: str,
        reduce_group: dist.ProcessGroup,
        reduce_group_has_dp: bool = False,
        valid_token_count: int | Tensor | None = None,
    ) -> Tensor:
        """Multiply a loss by all tokens that it is about, for the sum over tokens to be made of it.

        Each rank of the group has its part of the loss, but Megatron counts a rank's own tokens only.
        """
        tokens = len(activation) if valid_token_count is None else valid_token_count
        return super().attach_and_log_load_balancing_loss(
            activation,
            aux_loss_coeff,
            aux_loss,
            aux_loss_name,
            reduce_group,
            reduce_group_has_dp,
            tokens * reduce_group.size(),
        )

    def apply_z_loss(self, logits: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Add the z-loss (arXiv 2202.08906) of this rank's tokens. Megatron's divides their sum by ranks."""
        coefficient = self.config.moe_z_loss_coeff
        if coefficient is None or not (self.training and torch.is_grad_enabled()):
            return logits
        return MoEAuxLossAutoScaler.apply(logits, z_loss_func(logits, coefficient) * len(logits))

    def _apply_expert_bias(self, routing_map: Tensor, padding_mask: Tensor | None = None) -> None:
        """Leave counting to `routing`: Megatron's fails where there is padding."""

    def _count(self, logits_te: Tensor, chosen_te: Tensor, padding_mask: Tensor | None) -> None:
        if padding_mask is not None:
            chosen_te = chosen_te & ~self._own_rows(padding_mask.reshape(-1, 1))
        _, uncorrected_te = topk_routing_with_score_function(
            logits_te,
            self.topk,
            num_groups=self.config.moe_router_num_groups,
            group_topk=self.config.moe_router_group_topk,
            score_function=self.score_function,
        )
        self.local_tokens_per_expert += chosen_te.sum(0)
        self.local_corrections += (chosen_te & ~uncorrected_te).sum(0)

    def _own_rows(self, x_s1: Tensor) -> Tensor:
        ranks = self.tp_group.size() if self.config.sequence_parallel else 1
        return x_s1.chunk(ranks)[self.tp_group.rank() if ranks > 1 else 0]


def route_packed(layers: Iterable[ModuleSpec]) -> None:
    """Have layers of experts built with `PackedRouter`."""
    for layer in layers:
        if layer.submodules.mlp.module is MoELayer:
            layer.submodules.mlp.submodules.router = PackedRouter


def tell_padding(stage: nn.Module) -> None:
    """Have every transformer layer, those of MTP included, tell its router which tokens are padding."""
    for module in stage.modules():
        if isinstance(module, TransformerLayer):
            module.register_forward_pre_hook(_with_padding, with_kwargs=True)


def counting_routers(stages: Iterable[nn.Module]) -> Iterator[tuple[str, PackedRouter]]:
    """Routers that count, by their names in their stage."""
    for stage in stages:
        for name, module in stage.named_modules():
            if isinstance(module, PackedRouter) and module.enable_expert_bias:
                yield name, module


def _with_padding(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "padding_mask": kwargs["packed_seq_params"].padding_1s}
