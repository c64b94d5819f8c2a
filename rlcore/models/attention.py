"""Core attention on packed sequences in plain torch, and the description of a packed micro-batch.

Stands in for TransformerEngine's attention in Megatron's layer specs, and is the reference for it.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from rlcore.models.context_parallel import ContextSplit, Piece, gather_rows, pad
from rlcore.models.shared_rows import SharedRows


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron's packed sequences that remember their lengths on the host, so that no layer asks a device.

    `padding_1s` marks this rank's tokens that are padding, bool [1, s]; None where none is. `rows` says which
    tokens share a row, None where each has its own: lengths and offsets count tokens, hidden states have rows.
    `shared` is what layers tell whoever runs them; `carried` what they leave for later ones, and for themselves
    when they are recomputed, in the same pass.
    """

    lengths: tuple[int, ...] = ()
    cp: ContextSplit = field(default_factory=ContextSplit)
    padding_1s: Tensor | None = None
    rows: SharedRows | None = None
    shared: dict[str, Any] = field(default_factory=dict)
    carried: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        device: torch.device | None = None,
        cp: ContextSplit | None = None,
        *,
        tokens: int = 0,
        filler: bool = False,
        rows: SharedRows | None = None,
    ) -> "PackedSequences":
        """Describe sequences of these lengths (tokens, all positive) laid end to end, and padded as `cp` asks.

        More padding makes them `tokens` at least. All of a `filler` is padding. `rows`, of the sequences before
        padding, do not go with context parallelism.

        All that is told of them is about the whole on all context-parallel ranks, padding included: attention
        takes padding for the end of its sequence, where the causal mask hides it. max_seqlen is the longest
        sequence on purpose: were it the total, Megatron's rotary embedding would count positions through all
        sequences instead of starting each at 0, without an error.
        """
        cp = cp or ContextSplit()
        real, lengths = lengths, cp.padded(lengths, tokens, absent=rows.absent if rows else 0)
        real_w = pad(torch.full((sum(real),), not filler), real, lengths)
        real_s, position_s = cp.split(real_w, lengths), cp.positions(lengths)
        if rows:
            rows = rows.padded(sum(lengths))
            real_s, position_s = rows.once(real_s), rows.once(position_s)
        offsets = torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)
        # Megatron hands the offsets, and nothing else of these, to what rotates queries and keys.
        offsets.position_t = position_s.to(offsets.device)
        # TransformerEngine asks for them where ranks share sequences.
        padded_offsets = offsets if cp.size > 1 else None
        longest = max(lengths)
        return cls(
            qkv_format="thd",
            cu_seqlens_q=offsets,
            cu_seqlens_kv=offsets,
            cu_seqlens_q_padded=padded_offsets,
            cu_seqlens_kv_padded=padded_offsets,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            lengths=lengths,
            cp=cp,
            padding_1s=None if real_w.all() else ~real_s[None].to(offsets.device),
            rows=rows and rows.to(offsets.device),
        )

    def for_one_pass(self) -> "PackedSequences":
        """The same sequences, with nothing carried yet: it is freed when the pass and its gradient are done."""
        found = copy.copy(self)
        found.carried = {}
        return found

    @property
    def position_ids(self) -> Tensor:
        """Position of each token of this rank in its own sequence, int64 [1, t]."""
        return self.cu_seqlens_q.position_t[None]

    @cached_property
    def places(self) -> Tensor:
        """Where each of this rank's tokens stands among those of all context-parallel ranks, int64 [s]."""
        return self.cp.places(self.lengths).to(self.cu_seqlens_q.device)

    @cached_property
    def pieces(self) -> list[Piece]:
        """This rank's pieces of the sequences."""
        return self.cp.pieces(self.lengths)

    @cached_property
    def merging(self) -> Tensor:
        """Index that puts the tokens of all context-parallel ranks into the order of the whole."""
        return self.cp.merging(self.lengths).to(self.cu_seqlens_q.device)

    @cached_property
    def padding(self) -> "Padding":
        """How attention pads these sequences; found once and used by every layer."""
        return _padding(self.lengths, self.cu_seqlens_q.device)


@dataclass(frozen=True)
class Padding:
    """Batches of sequences of like length, padded on the right and laid end to end.

    `shapes` are the batches' (sequences, length); `slot_t` is the place of each packed token in that row, None
    where all sequences are equally long, so that each token is in its place already.
    """

    shapes: tuple[tuple[int, int], ...]
    slot_t: Tensor | None

    @property
    def slots(self) -> int:
        return sum(count * length for count, length in self.shapes)


# One more attention call costs about as much as attending over this many padded tokens.
_SHORT = 32
# Up to here padding costs less than the call that it saves.
_LONGEST_TO_SHORTEST = 1.25


def _padding(lengths: tuple[int, ...], device: torch.device) -> Padding:
    if len(set(lengths)) == 1:
        return Padding(((len(lengths), lengths[0]),), None)
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if groups and lengths[i] <= max(_SHORT, _LONGEST_TO_SHORTEST * lengths[groups[-1][0]]):
            groups[-1].append(i)
        else:
            groups.append([i])
    shapes, start_of, start = [], {}, 0
    for group in groups:
        longest = max(lengths[i] for i in group)
        shapes.append((len(group), longest))
        start_of |= {i: start + row * longest for row, i in enumerate(group)}
        start += len(group) * longest
    slots = torch.cat([start_of[i] + torch.arange(length) for i, length in enumerate(lengths)])
    return Padding(tuple(shapes), slots.to(device))


class PackedAttention(MegatronModule):
    """Causal softmax attention of packed sequences, with grouped queries and values of their own width."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        *,
        pg_collection: ProcessGroupCollection,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.cp_group = pg_collection.cp
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query_thd: Tensor,
        key_tgd: Tensor,
        value_tgd: Tensor,
        attention_mask: Tensor | None = None,
        *,
        packed_seq_params: PackedSequences,
        **_: Any,
    ) -> Tensor:
        """Attend within each sequence. t tokens, h query heads, g key heads, d widths; returns [t, h * d]."""
        if packed_seq_params.cp.size > 1:
            return self._attend_to_all_ranks(query_thd, key_tgd, value_tgd, packed_seq_params)
        rows = packed_seq_params.rows
        if rows:
            query_thd, key_tgd, value_tgd = (rows.spread(x) for x in (query_thd, key_tgd, value_tgd))
        padding = packed_seq_params.padding
        sizes = [count * length for count, length in padding.shapes]
        batches = zip(
            padding.shapes,
            *(_pad(x, padding).split(sizes) for x in (query_thd, key_tgd, value_tgd)),
            strict=True,
        )
        out_se = torch.cat([self._attend(shape, *qkv) for shape, *qkv in batches])
        out_te = out_se if padding.slot_t is None else out_se.index_select(0, padding.slot_t)
        return rows.once(out_te) if rows else out_te

    def _attend(self, shape: tuple[int, int], query_shd: Tensor, key_sgd: Tensor, value_sgd: Tensor) -> Tensor:
        """Attend in one padded batch. Padding stands to the right, where the causal mask hides it."""
        query, key, value = (x.unflatten(0, shape).transpose(1, 2) for x in (query_shd, key_sgd, value_sgd))
        out_bhld = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.softmax_scale, enable_gqa=query.size(1) != key.size(1)
        )
        return out_bhld.transpose(1, 2).flatten(0, 1).flatten(1)

    def _attend_to_all_ranks(
        self, query_thd: Tensor, key_tgd: Tensor, value_tgd: Tensor, sequences: PackedSequences
    ) -> Tensor:
        """Let the queries of this rank's pieces see the keys of every context-parallel rank."""
        own_tgd = torch.cat([key_tgd, value_tgd], -1)
        whole_tgd = gather_rows(own_tgd, self.cp_group).index_select(0, sequences.merging)
        key_tgd, value_tgd = whole_tgd.split([key_tgd.shape[-1], value_tgd.shape[-1]], -1)
        return torch.cat(
            [
                self._attend_to_past(query_thd[piece.rows], key_tgd[piece.seen], value_tgd[piece.seen])
                for piece in sequences.pieces
            ]
        )

    def _attend_to_past(self, query_thd: Tensor, key_sgd: Tensor, value_sgd: Tensor) -> Tensor:
        """Attend to the tokens of one sequence up to the queries, which are the last of them."""
        # Brings torch's compiler along, whose import takes seconds; on a GPU no mask is ever made of it.
        from torch.nn.attention.bias import causal_lower_right

        query, key, value = (x.transpose(0, 1)[None] for x in (query_thd, key_sgd, value_sgd))
        mask = causal_lower_right(len(query_thd), len(key_sgd))
        out_bhtd = F.scaled_dot_product_attention(
            query, key, value, mask, scale=self.softmax_scale, enable_gqa=query.size(1) != key.size(1)
        )
        return out_bhtd[0].transpose(0, 1).flatten(1)


def _pad(x_thd: Tensor, padding: Padding) -> Tensor:
    """Copy each token to its slot, if it has one, zeros elsewhere. Its gradient is a plain row selection."""
    if padding.slot_t is None:
        return x_thd
    return x_thd.new_zeros(padding.slots, *x_thd.shape[1:]).index_copy(0, padding.slot_t, x_thd)
