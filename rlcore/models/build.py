"""Builds this rank's part of a model: one PolicyModel per virtual pipeline stage, weights not yet filled in."""

import copy
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig

from rlcore.models.attention import PackedAttention
from rlcore.models.config import transformer_config
from rlcore.models.forward import PolicyModel
from rlcore.models.layers import last_decoder_layer
from rlcore.models.mtp import mtp_block
from rlcore.models.router import route_packed, tell_padding
from rlcore.models.spec import ModelSpec
from rlcore.models.split_weights import mark_split_weights

__all__ = ["build_model", "padded_vocab_size", "shares_prompts", "transformer_config"]


def padded_vocab_size(vocab_size: int, tensor_parallel: int) -> int:
    """Smallest number of rows, at least `vocab_size`, that TP ranks can share equally."""
    return -(-vocab_size // tensor_parallel) * tensor_parallel


def build_model(spec: ModelSpec, config: TransformerConfig, *, meta: bool = False) -> list[PolicyModel]:
    """Build the stages that this rank holds, in order, with uninitialised weights of `config.params_dtype`.

    `meta` allocates nothing: names, shapes and types only. Needs Megatron's process groups.
    """
    if meta:
        config = copy.copy(config)
        config.use_cpu_initialization = True
    stages = config.virtual_pipeline_model_parallel_size
    with torch.device("meta") if meta else nullcontext():
        return [_stage(spec, config, vp_stage) for vp_stage in (range(stages) if stages else (None,))]


def _stage(spec: ModelSpec, config: TransformerConfig, vp_stage: int | None) -> PolicyModel:
    ends: dict[str, Any] = {"ignore_virtual": False, "vp_stage": vp_stage}
    block, mtp_layer = spec.layer_specs(config, vp_stage), None
    if config.mtp_num_layers and parallel_state.is_pipeline_last_stage(**ends):
        mtp_layer = (spec.mtp_layer_spec or last_decoder_layer)(config)
    layers = [*block.layer_specs, *([mtp_layer] if mtp_layer else [])]
    route_packed(layers)
    if spec.cp_layout == "contiguous" and config.context_parallel_size > 1:
        _attend_in_plain_torch(layers)
    stage = PolicyModel(
        config,
        block,
        vocab_size=padded_vocab_size(spec.vocab_size, config.tensor_model_parallel_size),
        true_vocab_size=spec.vocab_size,
        pre_process=parallel_state.is_pipeline_first_stage(**ends),
        post_process=parallel_state.is_pipeline_last_stage(**ends),
        share_embeddings_and_output_weights=spec.tied_embeddings,
        mtp_block_spec=mtp_layer and mtp_block(mtp_layer, config.mtp_num_layers),
        vp_stage=vp_stage,
        **spec.model_args,
    )
    mark_split_weights(stage)
    tell_padding(stage)
    return stage


def shares_prompts(spec: ModelSpec, config: TransformerConfig) -> bool:
    """Whether samples may share the rows of their prompt (`rlcore.models.shared_rows`).

    TransformerEngine's attention has no means for it. MTP layers and context-parallel ranks take each token's
    row for that of its place.
    """
    whole = config.context_parallel_size == 1 and not config.mtp_num_layers
    return spec.shares_prompts and whole and _usual_attention() is PackedAttention


def _usual_attention() -> type:
    return gpt_layer_specs.TESpecProvider().core_attention()


def _attend_in_plain_torch(layers: Iterable[ModuleSpec]) -> None:
    """Replace the usual core attention: TransformerEngine's knows no context-parallel layout but zigzag."""
    usual = _usual_attention()
    for layer in layers:
        parts = layer.submodules.self_attention.submodules
        if getattr(parts, "core_attention", None) is usual:
            parts.core_attention = PackedAttention
