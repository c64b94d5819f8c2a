"""Which keys each query attends to: the best by index scores, DeepSeek-V3.2's "lightning indexer", section 2.1.

The reference in plain torch. Scores exist in tiles and the best of them are kept as tiles go by, so that memory
grows with the number of queries alone. Axes: t queries, T keys of everybody, i index heads, d widths, k chosen.
"""

import torch
from torch import Tensor

# Scores of a tile before heads are summed up: as many as a CPU keeps near, as a GPU takes to be busy.
_TILE = {"cpu": 2**20, "cuda": 2**26}
_FEWEST_KEYS = 1024


@torch.no_grad()
def select(
    query_tid: Tensor, key_Td: Tensor, weight_ti: Tensor, first_t: Tensor, last_t: Tensor, topk: int
) -> Tensor:
    """Places of the keys with the best scores Σ_i weight_ti · relu(query_tid · key_Td), computed in float32.

    Query t may choose from places first_t to last_t, both included, at most `topk`. Returns int32 [t, k], with
    k the smaller of `topk` and the longest such span: ascending, so that whoever attends to the same keys sums
    them up in the same order. A query with a shorter span has all of it, and -1 after it. No gradient.
    """
    first, last = first_t.cpu(), last_t.cpu()
    k = min(topk, int((last - first).max()) + 1)
    keys = max(_FEWEST_KEYS, k)
    queries = max(1, _TILE[query_tid.device.type] // (keys * weight_ti.shape[1]))
    index_tk = torch.empty(len(query_tid), k, dtype=torch.int32, device=query_tid.device)
    for start in range(0, len(query_tid), queries):
        rows = slice(start, start + queries)
        if int((last[rows] - first[rows]).max()) < topk:
            best_tk = first_t[rows, None] + torch.arange(k, device=first_t.device)
        else:
            seen = range(int(first[rows].min()), int(last[rows].max()) + 1, keys)
            spans = first_t[rows], last_t[rows]
            best_tk = _best(query_tid[rows], key_Td, weight_ti[rows], spans, seen, k).sort().values
        index_tk[rows] = best_tk.masked_fill(best_tk > last_t[rows, None], -1)
    return index_tk


def _best(
    query_tid: Tensor, key_Td: Tensor, weight_ti: Tensor, spans: tuple[Tensor, Tensor], seen: range, k: int
) -> Tensor:
    """Places [t, k] of the best keys in the tiles that start at `seen`, unordered; too high where keys lack."""
    first_t1, last_t1 = (bound_t[:, None] for bound_t in spans)
    best_tk = weight_ti.new_empty(len(query_tid), 0, dtype=torch.float32)
    place_tk = torch.empty_like(best_tk, dtype=torch.int64)
    for start in seen:
        stop = min(start + seen.step, seen.stop)
        place_s = torch.arange(start, stop, device=key_Td.device)
        score_ts = index_scores(query_tid, key_Td[start:stop], weight_ti)
        score_ts.masked_fill_((place_s < first_t1) | (place_s > last_t1), -torch.inf)
        best_tk = torch.cat([best_tk, score_ts], 1)
        place_tk = torch.cat([place_tk, place_s.expand(len(score_ts), -1)], 1)
        # By scores they need not be sorted: places will be.
        best_tk, chosen_tk = best_tk.topk(min(k, best_tk.shape[1]), sorted=False)
        place_tk = place_tk.gather(1, chosen_tk)
    return place_tk.masked_fill(best_tk == -torch.inf, len(key_Td))


def index_scores(query_tid: Tensor, key_sd: Tensor, weight_ti: Tensor) -> Tensor:
    """Scores [t, s] in float32 of keys [s, d], or of keys [t, s, d] where each query has its own."""
    score_tis = (query_tid.float() @ key_sd.float().mT).relu_()
    return (weight_ti.float()[:, None] @ score_tis)[:, 0]


def fingerprint(index_tk: Tensor, first_t: Tensor, ordinal: int) -> Tensor:
    """Sum up which positions a full layer's queries chose, whatever their order: int64 [t].

    `ordinal` says which full layer it is, `first_t` where each query's sequence starts. Sums of different sets
    are different but for one in 2**63, also sums over layers and over tokens, which wrap around.
    """
    position_tk = index_tk.long() - first_t.long()[:, None]
    return _mixed(_mixed(position_tk + 1) + ordinal + 1).masked_fill(index_tk < 0, 0).sum(1)


def _mixed(x: Tensor) -> Tensor:
    """Scatter integers over int64, as SplitMix64 ends (https://doi.org/10.1145/2660193.2660195)."""
    for shift, factor in (30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1):
        # A logical shift: the sign must not come along.
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x
