"""Megatron's router of tokens to experts, for packed micro-batches: only tokens of samples count.

Padding is there for the layout's sake, and so are fillers. They are routed like any token, but must not show in
statistics, move correction biases, or have a part in losses.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region
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
        """Choose experts: probabilities and choices, [t, e]. `padding_mask` is about all TP ranks' tokens."""
        logits_te = logits.detach().flatten(0, -2)
        padding_t = self._own_padding(logits_te, padding_mask)
        probs_te, chosen_te = super().routing(logits, padding_mask=padding_t)
        if self.enable_expert_bias and torch.is_grad_enabled():
            self._count(logits_te, chosen_te & ~padding_t[:, None])
        return probs_te, chosen_te

    def _apply_aux_loss(
        self, probs: Tensor, scores_for_aux_loss: Tensor, routing_map: Tensor, with_padding_mask: bool = False
    ) -> Tensor:
        counted_te = self._something_counted(routing_map)
        return super()._apply_aux_loss(probs, scores_for_aux_loss, counted_te, with_padding_mask)

    def _something_counted(self, counted_te: Tensor) -> Tensor:
        """Without any token Megatron's loss is NaN: padding then counts as chosen, and its scores are zeros."""
        found = reduce_from_tensor_model_parallel_region(counted_te.sum(), self.tp_cp_group)
        return counted_te | (found == 0)

    def apply_z_loss(self, logits: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Add the z-loss (arXiv 2202.08906) of this rank's tokens. Megatron's divides their sum by ranks."""
        coefficient = self.config.moe_z_loss_coeff
        if coefficient is None or not (self.training and torch.is_grad_enabled()):
            return logits
        assert padding_mask is not None, "every micro-batch has one"
        z_loss = z_loss_func(logits, coefficient, padding_mask) * (~padding_mask).sum()
        return MoEAuxLossAutoScaler.apply(logits, z_loss)

    def _apply_expert_bias(self, routing_map: Tensor, padding_mask: Tensor | None = None) -> None:
        """Leave counting to `routing`: Megatron's fails where there is padding."""

    def _count(self, logits_te: Tensor, chosen_te: Tensor) -> None:
        _, uncorrected_te = topk_routing_with_score_function(
            logits_te,
            self.topk,
            num_groups=self.config.moe_router_num_groups,
            group_topk=self.config.moe_router_group_topk,
            score_function=self.score_function,
        )
        self.local_tokens_per_expert += chosen_te.sum(0)
        self.local_corrections += (chosen_te & ~uncorrected_te).sum(0)

    def _own_padding(self, logits_te: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Which of the tokens that this rank routes are padding, bool [t].

        A mask also where there is none: with it Megatron multiplies a loss, of which each rank of a group has
        its part, by the tokens of the group, without it by those of the rank.
        """
        if padding_mask is None:
            return torch.zeros(len(logits_te), dtype=torch.bool, device=logits_te.device)
        ranks = self.tp_group.size() if self.config.sequence_parallel else 1
        return padding_mask.flatten().chunk(ranks)[self.tp_group.rank() if ranks > 1 else 0]


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
