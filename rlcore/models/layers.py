"""Transformer layers that Megatron lacks, and the block specs that model plugins put them into."""

from collections.abc import Callable
from typing import Any

from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn


def decoder_block(
    config: TransformerConfig, vp_stage: int | None, *, layer: type[TransformerLayer] = TransformerLayer
) -> TransformerBlockSubmodules:
    """Megatron's own decoder specs for the layers of this stage, each built as `layer`."""
    block = gpt_layer_specs.get_gpt_decoder_block_spec(config, use_transformer_engine=True, vp_stage=vp_stage)
    for spec in block.layer_specs:
        spec.module = layer
    return block


def last_decoder_layer(config: TransformerConfig) -> ModuleSpec:
    """Megatron's own spec of the model's last layer, on whichever stage it is."""
    return gpt_layer_specs.get_gpt_decoder_layer_specs(config, use_transformer_engine=True)[-1]


class SandwichNormLayer(TransformerLayer):
    """A layer that also normalises what attention and MLP give back, before each joins the residual stream."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.post_self_attn_layernorm = self._norm()
        self.post_mlp_layernorm = self._norm()
        self.self_attn_bda = _normalise_first(self.post_self_attn_layernorm, self.self_attn_bda)
        self.mlp_bda = _normalise_first(self.post_mlp_layernorm, self.mlp_bda)

    def _norm(self) -> nn.Module:
        return gpt_layer_specs.TENorm(
            config=self.config, hidden_size=self.config.hidden_size, eps=self.config.layernorm_epsilon
        )


BiasDropoutAdd = Callable[[tuple[Tensor, Tensor | None], Tensor, float], Tensor]


def _normalise_first(
    norm: nn.Module, make_add: Callable[[bool, bool], BiasDropoutAdd]
) -> Callable[[bool, bool], BiasDropoutAdd]:
    """Wrap Megatron's bias-dropout-add factory so that the residual is added to the normalised output."""

    def make(training: bool, fused: bool) -> BiasDropoutAdd:
        add = make_add(training, fused)

        def normalise_and_add(
            output_with_bias: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float
        ) -> Tensor:
            output, bias = output_with_bias
            return add((norm(output if bias is None else output + bias), None), residual, dropout)

        return normalise_and_add

    return make
