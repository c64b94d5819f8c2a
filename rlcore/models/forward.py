"""A GPTModel that ends at its hidden states, so that no one need hold the logits of a whole micro-batch.

The trainer multiplies hidden states by the output weight in chunks of tokens; parity checks do it at once.
"""

from typing import Any

from megatron.core.models.gpt import GPTModel
from torch import Tensor, nn

from rlcore.models.attention import PackedSequences


class PolicyModel(GPTModel):
    """Megatron's GPTModel without the last step from hidden states to logits.

    `vocab_size` may be padded for tensor parallelism; `true_vocab_size` is the tokenizer's.
    """

    def __init__(self, *args: Any, true_vocab_size: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.true_vocab_size = true_vocab_size
        if self.mtp_process and not self.pre_process:
            # MTP layers never train the embedding: what they look up here is a copy of the first stage's.
            self.embedding.requires_grad_(False)

    def _postprocess(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return hidden_states


def forward_hidden(model: nn.Module, tokens_1t: Tensor, sequences: PackedSequences) -> Tensor:
    """Run one pipeline stage on a packed micro-batch.

    `model` is a PolicyModel, or one wrapped for data parallelism; `tokens_1t` are int64 [1, t]. Returns
    hidden states [t, 1, h], after the final norm on the last stage; under sequence parallelism only this TP
    rank's t / tp of them.
    """
    sequences = sequences.for_one_pass()
    return model(tokens_1t, sequences.position_ids, None, packed_seq_params=sequences)


def forward_mtp(
    model: nn.Module, hidden_s1h: Tensor, tokens_1s: Tensor, sequences: PackedSequences
) -> list[Tensor]:
    """Run the MTP layers of the last stage on what `forward_hidden` gave; return the hidden states of each.

    Row i of the k-th (from 0) predicts, times the output weight, the token k + 2 places on. No gradient reaches
    `hidden_s1h` or the embedding. A model without MTP layers gives an empty list.
    """
    policy = unwrap(model)
    if not policy.mtp_process:
        return []
    # Recomputed layers have a gradient only where an input asks for one.
    hidden_s1h = hidden_s1h.detach().requires_grad_()
    sequences = sequences.for_one_pass()
    positions = sequences.position_ids
    rotary = policy._preprocess(tokens_1s, positions, hidden_s1h, packed_seq_params=sequences)[1]
    found = []
    for layer in policy.mtp.layers:
        hidden_s1h, tokens_1s, _ = layer(
            tokens_1s,
            positions,
            hidden_s1h,
            None,
            rotary_pos_emb=rotary,
            packed_seq_params=sequences,
            embedding=policy.embedding,
        )
        found.append(hidden_s1h)
    return found


def output_weight(model: nn.Module) -> Tensor:
    """Rows of the output layer that this TP rank holds, [v, h], padding left out; the last stage only."""
    policy = unwrap(model)
    if policy.share_embeddings_and_output_weights:
        weight = policy.shared_embedding_or_output_weight()
    else:
        weight = policy.output_layer.weight
    start = vocabulary_start(policy)
    return weight[: max(0, policy.true_vocab_size - start)]


def vocabulary_start(model: nn.Module) -> int:
    """Token id of the first row of `output_weight`."""
    policy = unwrap(model)
    group = policy.pg_collection.tp
    return group.rank() * (policy.vocab_size // group.size())


def unwrap(model: nn.Module) -> PolicyModel:
    """Look through the wrappers of data parallelism and mixed precision."""
    while not isinstance(model, PolicyModel):
        model = model.module
    return model
