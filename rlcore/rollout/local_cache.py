"""What the local engine keeps of every token, and the attention function that keeps keys and values.

The model's own forward runs on packed tokens; transformers hands each layer's query, key and value to
`slot_attention`, which stores the new keys and values and attends over what is stored. A model whose
attention keeps something else brings its own (`ModelSpec.serve_transformers`). One forward packs the newest
token of every row first, then the other tokens of rows that just entered (their prefill).

Axes: r rows, t packed tokens, h heads, g key/value heads, l cached positions, d head dimension.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

ATTENTION = "rlcore_slots"
GROWTH = 1.5
LENGTH_STEP = 64
# With fewer queries a key head, CPU kernels round otherwise than the trainer's, which have a sequence of them.
_LEAST_QUERIES = 4


@dataclass(frozen=True)
class Prefill:
    """`rows` new rows with equally many tokens to prefill, packed side by side from `start`."""

    start: int
    rows: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.rows * self.length


@dataclass(frozen=True)
class PrefixCopy:
    """The first `length` cached positions of rows `target_n` are those of rows `source_n`; none is in both."""

    source_n: torch.Tensor
    target_n: torch.Tensor
    length: int


@dataclass
class ForwardPlan:
    """Where each packed token belongs. The first `rows` tokens are the newest ones of rows 0, 1, …

    `shared` is for what layers leave to others of the same forward, and to the engine.
    """

    rows: int
    row_t: torch.Tensor
    position_t: torch.Tensor
    longest: int
    prefills: tuple[Prefill, ...] = ()
    copies: tuple[PrefixCopy, ...] = ()
    masks: dict[tuple[int, torch.dtype], torch.Tensor] = field(default_factory=dict)
    targets: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def hidden_rl(self) -> torch.Tensor:
        """Bool [r, l]: what a row has not cached, as far as the longest one reaches."""
        position_r = self.position_t[: self.rows]
        return torch.arange(self.longest, device=position_r.device) > position_r[:, None]

    def mask(self, queries: int, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask [r, 1, queries, l] that hides what a row has not cached; made once per forward."""
        if (queries, dtype) not in self.masks:
            mask_rl = torch.zeros(self.hidden_rl.shape, dtype=dtype, device=self.position_t.device)
            mask_rl.masked_fill_(self.hidden_rl, float("-inf"))
            # Expanded over the queries: the CPU's fused kernel is half as fast with a broadcast axis.
            self.masks[queries, dtype] = mask_rl[:, None, None].expand(-1, 1, queries, -1)
        return self.masks[queries, dtype]

    def target(self, heads: int, length: int) -> torch.Tensor:
        """Index [g * t] of every token's place in a cache flattened to [r * g * l]; made once per forward."""
        if (heads, length) not in self.targets:
            head_g = torch.arange(heads, device=self.row_t.device)[:, None]
            self.targets[heads, length] = ((self.row_t * heads + head_g) * length + self.position_t).flatten()
        return self.targets[heads, length]


class SlotCache:
    """Tensors [r, g, l, d] by name, each allocated when first kept and grown on demand."""

    def __init__(self) -> None:
        self.rows = 0
        self.length = 0
        self._kept: dict[Hashable, torch.Tensor] = {}

    def reserve(self, rows: int, length: int, most_rows: int) -> None:
        """Make room for `rows` rows of `length` positions; never more than `most_rows` rows."""
        if rows > self.rows:
            self.rows = min(max(rows, int(self.rows * GROWTH)), most_rows)
        if length > self.length:
            length = max(length, int(self.length * GROWTH))
            self.length = -(-length // LENGTH_STEP) * LENGTH_STEP

    def keep(self, name: Hashable, new_gtd: torch.Tensor, plan: ForwardPlan) -> torch.Tensor:
        """Write what one forward makes under a name, then copy the prefixes that rows share; return all of it.

        The tensor [r, g, l, d] has room for more rows and positions than the plan's.
        """
        cache = self._room(name, new_gtd)
        index = plan.target(new_gtd.shape[0], cache.shape[2])
        cache.view(-1, cache.shape[3]).index_copy_(0, index, new_gtd.reshape(-1, cache.shape[3]))
        for copy in plan.copies:
            prefix = cache[:, :, : copy.length]
            prefix[copy.target_n] = prefix[copy.source_n]
        return cache

    def move(self, source: int, target: int, length: int) -> None:
        """Row `target` becomes a copy of the first `length` positions of row `source`."""
        for cache in self._kept.values():
            cache[target, :, :length] = cache[source, :, :length]

    def clear(self) -> None:
        """Give all memory back."""
        self.rows = self.length = 0
        self._kept.clear()

    def _room(self, name: Hashable, new_gtd: torch.Tensor) -> torch.Tensor:
        old = self._kept.get(name)
        heads, _, width = new_gtd.shape
        shape = (self.rows, heads, self.length, width)
        if old is not None and old.shape == shape:
            return old
        # Zeros, not garbage: a masked NaN would still poison the product with its zero weight.
        self._kept[name] = cache = new_gtd.new_zeros(shape)
        if old is not None:
            cache[: old.shape[0], :, : old.shape[2]] = old
        return cache


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    slots: tuple[SlotCache, ForwardPlan],
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer over packed tokens; transformers calls it with its usual arguments.

    `query` is [1, h, t, d], `key` and `value` [1, g, t, d]; returns [1, t, h, d].
    """
    cache, plan = slots
    keys = cache.keep(("keys", module.layer_idx), key[0], plan)[: plan.rows, :, : plan.longest]
    values = cache.keep(("values", module.layer_idx), value[0], plan)[: plan.rows, :, : plan.longest]
    decoded = _attend_to_cache(query[0, :, : plan.rows], keys, values, plan, scaling)
    if not plan.prefills:
        return decoded[None], None
    new = [_attend_causally(query[0], key[0], value[0], prefill, scaling) for prefill in plan.prefills]
    return torch.cat([decoded, *new])[None], None


def _attend_to_cache(
    query_hrd: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    plan: ForwardPlan,
    scaling: float | None,
) -> torch.Tensor:
    heads, rows, width = query_hrd.shape
    groups = keys.shape[1]
    sharing = heads // groups
    # The heads that share a key head become its queries: no repeated keys, and the mask hides the same.
    query = query_hrd.view(groups, sharing, rows, width).permute(2, 0, 1, 3)
    if sharing < _LEAST_QUERIES:
        query = F.pad(query, (0, 0, 0, _LEAST_QUERIES - sharing))
    mask = plan.mask(query.shape[2], query.dtype)
    # The trainer's own kernel, so that both round alike.
    out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
    return out[:, :, :sharing].reshape(rows, heads, values.shape[-1])


def _attend_causally(
    query_htd: torch.Tensor,
    key_gtd: torch.Tensor,
    value_gtd: torch.Tensor,
    prefill: Prefill,
    scaling: float | None,
) -> torch.Tensor:
    def rows(packed: torch.Tensor) -> torch.Tensor:
        part = packed[:, prefill.start : prefill.stop]
        return part.unflatten(1, (prefill.rows, prefill.length)).transpose(0, 1)

    query, key, value = rows(query_htd), rows(key_gtd), rows(value_gtd)
    out = F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2).flatten(0, 1)


def group_prefills(start: int, lengths: list[int]) -> tuple[Prefill, ...]:
    """Bundle rows of equal length that lie side by side from `start` on; rows without tokens vanish."""
    edges = [i for i, length in enumerate(lengths) if i == 0 or length != lengths[i - 1]]
    prefills = []
    for first, after in pairwise([*edges, len(lengths)]):
        prefill = Prefill(start, after - first, lengths[first])
        start = prefill.stop
        prefills.append(prefill)
    return tuple(prefill for prefill in prefills if prefill.length)


AttentionInterface.register(ATTENTION, slot_attention)
