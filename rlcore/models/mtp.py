"""Multi-token prediction (MTP, arXiv 2412.19437, section 2.2) on packed sequences.

Layers are Megatron's. The k-th, from 1, predicts the token k + 1 places on, from hidden states of the layer
before it and the embedding of the token k places on. They learn alone: what comes in from the rest of the model
takes no gradient back.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.tensor_parallel import checkpoint
from megatron.core.transformer.multi_token_prediction import (
    MultiTokenPredictionBlockSubmodules,
    MultiTokenPredictionLayer,
    get_mtp_layer_spec_for_backend,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor, nn

from rlcore.models.attention import PackedSequences
from rlcore.models.context_parallel import gather_rows


class PackedMTPLayer(MultiTokenPredictionLayer):
    """Megatron's layer for packed sequences in any context-parallel layout; it leaves the embedding alone."""

    def _get_embeddings(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        embedding: Callable[..., Tensor],
        hidden_states: Tensor,
        packed_seq_params: PackedSequences,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gather = partial(gather_rows, group=self.cp_group)
        next_s = packed_seq_params.cp.roll(input_ids[0], packed_seq_params.lengths, gather)
        with torch.no_grad():
            embedded_s1h = embedding(input_ids=next_s[None], position_ids=position_ids)
        return next_s[None], position_ids, embedded_s1h, hidden_states

    def _checkpointed_forward(
        self,
        forward_func: Callable[..., Tensor],
        *,
        hidden_states: Tensor,
        decoder_input: Tensor,
        **rest: Any,
    ) -> Tensor:
        """Recompute the layer in the backward pass. Megatron would hand packed sequences to autograd, too."""

        def run(hidden_s1h: Tensor, embedded_s1h: Tensor) -> Tensor:
            return forward_func(hidden_states=hidden_s1h, decoder_input=embedded_s1h, **rest)

        return checkpoint(run, self.config.distribute_saved_activations, hidden_states, decoder_input)


def mtp_block(transformer_layer: ModuleSpec, layers: int) -> MultiTokenPredictionBlockSubmodules:
    """Spec of the block of so many MTP layers around this transformer layer."""
    layer = get_mtp_layer_spec_for_backend(transformer_layer, gpt_layer_specs.TESpecProvider())
    layer.module = PackedMTPLayer
    return MultiTokenPredictionBlockSubmodules(layer_specs=[layer] * layers)


def freeze_mtp(stages: Sequence[nn.Module]) -> None:
    """Let MTP layers keep their weights, and take no memory for gradients or optimizer."""
    for stage in stages:
        if stage.mtp_process:
            stage.mtp.requires_grad_(False)


def refresh_embedding(stages: Sequence[nn.Module]) -> None:
    """Copy the embedding from the first to the last pipeline stage, where MTP layers look tokens up."""
    # Stages between the two are not in the group.
    group = parallel_state.get_embedding_group(check_initialized=False)
    if stages[0].config.mtp_num_layers is None or group is None or group.size() == 1:
        return
    first, *_ = dist.get_process_group_ranks(group)
    stage = stages[0] if dist.get_rank() == first else stages[-1]
    dist.broadcast(stage.embedding.word_embeddings.weight.detach(), first, group=group)
