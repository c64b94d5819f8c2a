"""Which keys each query attends to, in Triton: `selection.py`'s function for a GPU.

One kernel writes the scores of a tile of queries, another picks the best of each row: it finds the least score
that is chosen, digit by digit (radix selection), and then collects places. Neither does what no query asks for.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Scores of a tile of queries: 256 MiB. Larger ones launch less often, none needs more.
_SCORES = 2**26


@torch.no_grad()
def select(
    query_tid: Tensor, key_Td: Tensor, weight_ti: Tensor, first_t: Tensor, last_t: Tensor, topk: int
) -> Tensor:
    """Places of the keys with the best scores Σ_i weight_ti · relu(query_tid · key_Td): int32 [t, k].

    As the reference has it, and of equal scores the earlier ones are taken. Products are summed in float32.
    """
    first, last = first_t.cpu(), last_t.cpu()
    k = min(topk, int((last - first).max()) + 1)
    query_tid, key_Td, weight_ti = query_tid.contiguous(), key_Td.contiguous(), weight_ti.contiguous()
    first_t, last_t = first_t.contiguous(), last_t.contiguous()
    index_tk = torch.empty(len(query_tid), k, dtype=torch.int32, device=query_tid.device)
    queries = max(1, _SCORES // len(key_Td))
    for start in range(0, len(query_tid), queries):
        rows = slice(start, start + queries)
        low, high = int(first[rows].min()), int(last[rows].max()) + 1
        spans = first_t[rows], last_t[rows]
        scores = query_tid.new_empty(0, dtype=torch.float32)
        if int((last[rows] - first[rows]).max()) >= k:
            scores = _scores(query_tid[rows], key_Td, weight_ti[rows], spans, range(low, high), k)
        pick_kernel[(len(spans[0]),)](scores, *spans, index_tk[rows], low, high - low, k, **pick_sizes(k))
    return index_tk


def _scores(
    query_tid: Tensor, key_Td: Tensor, weight_ti: Tensor, spans: tuple[Tensor, Tensor], places: range, k: int
) -> Tensor:
    """float32 [t, len(places)]; undefined where a query has no more than k keys or may not choose."""
    score_ts = query_tid.new_empty(len(query_tid), len(places), dtype=torch.float32)
    sizes = score_sizes(query_tid)
    grid = (triton.cdiv(len(places), sizes["KEYS"]), triton.cdiv(len(query_tid), sizes["QUERIES"]))
    score_kernel[grid](
        query_tid, key_Td, weight_ti, *spans, score_ts, len(query_tid), places.start, places.stop, k, **sizes
    )
    return score_ts


def score_sizes(query_tid: Tensor) -> dict[str, int]:
    """Sizes of tiles, and options of the launch."""
    _, heads, width = query_tid.shape
    return {
        "HEADS": heads,
        "WIDTH": width,
        "WIDTH_TILE": max(16, triton.next_power_of_2(width)),
        "QUERIES": 64,
        # Each head's queries are read once for so many keys: fewer would wait for the cache. float32 is there
        # to compare with, not to be fast, and needs twice the room.
        "KEYS": 64 if query_tid.dtype == torch.float32 else 256,
        "num_warps": 8,
        "num_stages": 3,
    }


def pick_sizes(chosen: int) -> dict[str, int]:
    """Sizes of tiles, and options of the launch."""
    # Kernels are compiled for each power of two, not for each length of a batch's longest sequence.
    return {"SLOTS": triton.next_power_of_2(chosen), "TILE": 4096, "num_warps": 8}


@triton.jit(do_not_specialize=["queries", "low", "high"])
def score_kernel(
    query: tl.tensor,
    key: tl.tensor,
    weight: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    score: tl.tensor,
    queries: int,
    low: int,
    high: int,
    chosen: int,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_TILE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """Scores of a tile of queries and keys. The keys stay, heads' queries pass by."""
    start = low + tl.program_id(0) * KEYS
    row_t = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    present_t = row_t < queries
    first_t = tl.load(first + row_t, present_t, 0)
    last_t = tl.load(last + row_t, present_t, -1)
    asked_t = (last_t - first_t >= chosen) & (first_t < start + KEYS) & (last_t >= start)
    if tl.max(asked_t.to(tl.int32), 0) == 0:
        return
    place_s = start + tl.arange(0, KEYS)
    column = tl.arange(0, WIDTH_TILE)
    key_mask = (place_s < high)[:, None] & (column < WIDTH)[None]
    key_sd = tl.load(key + place_s.to(tl.int64)[:, None] * WIDTH + column[None], key_mask, 0.0)
    query_mask = present_t[:, None] & (column < WIDTH)[None]
    score_ts = tl.zeros([QUERIES, KEYS], tl.float32)
    for head in range(HEADS):
        row = row_t.to(tl.int64) * HEADS + head
        query_td = tl.load(query + row[:, None] * WIDTH + column[None], query_mask, 0.0)
        weight_t = tl.load(weight + row, present_t, 0.0).to(tl.float32)
        product_ts = tl.dot(query_td, tl.trans(key_sd), input_precision="ieee")
        score_ts += tl.maximum(product_ts, 0.0) * weight_t[:, None]
    target = score + row_t.to(tl.int64)[:, None] * (high - low) + (place_s - low)[None]
    tl.store(target, score_ts, present_t[:, None] & (place_s < high)[None])


@triton.jit(do_not_specialize=["low", "width"])
def pick_kernel(
    score: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    index: tl.tensor,
    low: int,
    width: int,
    chosen: int,
    SLOTS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Places of the best scores of one query, or of all its keys where these are no more."""
    query = tl.program_id(0).to(tl.int64)
    first = tl.load(first + query).to(tl.int32)
    last = tl.load(last + query).to(tl.int32)
    index += query * chosen
    if last - first < chosen:
        slot = tl.arange(0, SLOTS)
        place = first + slot
        tl.store(index + slot, tl.where(place <= last, place, -1), slot < chosen)
    else:
        # Places count from the tile's lowest.
        score += query * width - low
        least, equals = _least(score, first, last, chosen, TILE)
        _collect(score, first, last, least, equals, index, TILE)


@triton.jit
def _least(score: tl.tensor, first: int, last: int, chosen: int, TILE: tl.constexpr) -> tuple:
    """The least of the chosen scores in sortable bits, and how many of the keys that have it are chosen."""
    digit = tl.arange(0, 256)
    least = tl.zeros([], tl.uint32)
    missing = chosen
    for shift in tl.static_range(24, -1, -8):
        count = tl.zeros([256], tl.int32)
        for start in range(first, last + 1, TILE):
            bits, present = _sortable(score, start, last, TILE)
            # The upper digits, which are settled.
            same = present & ((bits ^ least).to(tl.uint64) >> (shift + 8) == 0)
            count += tl.histogram(((bits >> shift) & 255).to(tl.int32), 256, same)
        at_least = tl.sum(count, 0) - tl.cumsum(count, 0) + count
        settled = tl.max(tl.where(at_least >= missing, digit, 0), 0)
        missing -= tl.sum(tl.where(digit > settled, count, 0), 0)
        least |= settled.to(tl.uint32) << shift
    return least, missing


@triton.jit
def _collect(
    score: tl.tensor,
    first: int,
    last: int,
    least: tl.tensor,
    equals: tl.tensor,
    index: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """Write down the places of all scores above `least` and of the first `equals` that equal it."""
    filled = tl.zeros([], tl.int32)
    for start in range(first, last + 1, TILE):
        bits, present = _sortable(score, start, last, TILE)
        equal = (present & (bits == least)).to(tl.int32)
        chosen = (present & (bits > least)) | ((equal > 0) & (tl.cumsum(equal, 0) <= equals))
        slot = filled + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(index + slot, start + tl.arange(0, TILE), chosen)
        filled += tl.sum(chosen.to(tl.int32), 0)
        equals -= tl.sum(equal, 0)


@triton.jit
def _sortable(score: tl.tensor, start: int, last: int, TILE: tl.constexpr) -> tuple:
    """Scores as unsigned integers in the order of the numbers, and which of them there are."""
    place = start + tl.arange(0, TILE)
    present = place <= last
    bits = tl.load(score + place, present, 0.0).to(tl.uint32, bitcast=True)
    return bits ^ tl.where(bits >> 31 != 0, 0xFFFFFFFF, 0x80000000), present
