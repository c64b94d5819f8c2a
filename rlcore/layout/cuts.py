"""The best balanced ways to cut layers into stages of any sizes: dynamic programming over what layers cost."""

from bisect import insort
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from rlcore.config.schema import Parallel

# Costs of chunks, the dearest first, and layers of chunks in their order: cuts are compared by both.
_Found = tuple[tuple[int, ...], tuple[int, ...]]


@lru_cache(maxsize=64)
def best_cuts(
    costs: tuple[int, ...], starts: tuple[bool, ...], chunks: int, *, last: int = 0, limit: int = 1
) -> tuple[tuple[int, ...], ...]:
    """Return up to `limit` ways to cut layers into chunks, as numbers of layers, the best balanced first.

    `costs` are those of the layers, `last` that of what follows them in the last chunk; `starts` says which
    layers may start a chunk. Every chunk has layers. Best is a cut whose dearest chunk costs least; of equal
    ones, that whose second dearest does, and so on; then smaller chunks come first.

    One chunk more in front of two cuts leaves their order as it is, so that the best cuts of the layers from
    some layer on are made of the best ones further on: nothing is lost by keeping `limit` of them.
    """
    ends, layers = list(accumulate(costs, initial=0)), len(costs)
    firsts = [layer for layer in range(layers) if layer == 0 or starts[layer]]
    best: dict[int, list[_Found]] = {
        start: [((ends[layers] - ends[start] + last,), (layers - start,))] for start in firsts
    }
    for _ in range(chunks - 1):
        best = {start: _with_chunk_from(start, best, ends, limit) for start in firsts}
    return tuple(cut for _, cut in best[0])


def _with_chunk_from(
    start: int, tails: dict[int, list[_Found]], ends: Sequence[int], limit: int
) -> list[_Found]:
    """Put a chunk that begins at `start` in front of the tails behind it; return the best."""
    found: list[_Found] = []
    for following in (layer for layer in tails if layer > start):
        cost = ends[following] - ends[start]
        for tail_costs, tail in tails[following]:
            if len(found) == limit and max(cost, tail_costs[0]) > found[-1][0][0]:
                break
            by_cost = tuple(sorted((cost, *tail_costs), reverse=True))
            insort(found, (by_cost, (following - start, *tail)))
            del found[limit:]
    return found


def free_form(cut: Sequence[int], mtp_layers: int = 0) -> str:
    """Write a cut as `pipeline_layout`, MTP layers and the loss at its end: `Et*10|t*8|t*8mL`."""
    chunks = "|".join(f"t*{layers}" if layers > 1 else "t" * layers for layers in cut)
    return f"E{chunks}{'m' * mtp_layers}L"


def with_cut(parallel: Parallel, cut: Sequence[int], mtp_layers: int) -> Parallel:
    """Ask for a cut, in place of sizes of the ends."""
    ends = {"first_stage_layers": None, "last_stage_layers": None}
    return parallel.model_copy(update={**ends, "pipeline_layout": free_form(cut, mtp_layers)})
