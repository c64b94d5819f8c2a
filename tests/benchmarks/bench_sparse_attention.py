"""Time and memory of GLM-5's attention on a CPU against dense attention, by length of the sequence.

    python tests/benchmarks/bench_sparse_attention.py [--lengths 1024 4096 32768] [--topk 256]

Prints JSON. A case is one layer's attention, forward and backward, of one sequence in fp32 on one thread,
without projections, at an eighth of GLM-5.2's heads, widths and chosen keys: dense attention by torch's own
kernel, which needs no square of scores; a layer that chooses keys and attends to them; one that attends to what
another chose. Each runs in a process of its own; `mib_per_1k` is what that grew by at its peak, for each 1,024
tokens: the same at every length where memory is linear. `crossover` is the shortest length at which a layer
takes less time than dense attention.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rlcore_glm52_dsa.selection import select
from rlcore_glm52_dsa.sparse import attend
from torch import Tensor

HEADS, UNROTATED, ROTATED, VALUE, LATENT = 8, 24, 8, 32, 64
INDEX_HEADS, INDEX_WIDTH = 4, 16
LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768)


def dense(length: int, topk: int) -> Callable[[], Tensor]:
    query, key = (_drawn(1, HEADS, length, UNROTATED + ROTATED) for _ in range(2))
    value = _drawn(1, HEADS, length, VALUE)
    return lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True)


def shared(length: int, topk: int) -> Callable[[], Tensor]:
    query, key = _drawn(length, HEADS, LATENT + ROTATED), _drawn(length, LATENT + ROTATED)
    age = (torch.rand(length, topk) * (torch.arange(length)[:, None] + 1)).int()
    index_tk = torch.arange(length, dtype=torch.int32)[:, None] - age
    return lambda: attend(query, key, index_tk, 0.2, LATENT)


def full(length: int, topk: int) -> Callable[[], Tensor]:
    query, key = _drawn(length, HEADS, LATENT + ROTATED), _drawn(length, LATENT + ROTATED)
    place = torch.arange(length)
    indexer = [torch.randn(length, INDEX_HEADS, INDEX_WIDTH), torch.randn(length, INDEX_WIDTH)]
    choice = *indexer, torch.randn(length, INDEX_HEADS), torch.zeros_like(place), place, topk
    return lambda: attend(query, key, select(*choice), 0.2, LATENT)


CASES = {"dense": dense, "chooses": full, "shares": shared}


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


def measure(case: str, length: int, topk: int) -> dict[str, float]:
    """CPU seconds, which other work on the machine changes little, and MiB for each 1,024 tokens."""
    torch.set_num_threads(1)
    CASES[case](64, topk)().sum().backward()
    run, before, start = CASES[case](length, topk), _peak(), time.process_time()
    run().sum().backward()
    seconds = time.process_time() - start
    return {"seconds": round(seconds, 3), "mib_per_1k": round((_peak() - before) * 1024 / length, 2)}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--topk", type=int, default=256)
    args = parser.parse_args()
    found: dict[int, dict[str, dict[str, float]]] = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for length in args.lengths:
            found[length] = {case: pool.apply(measure, (case, length, args.topk)) for case in CASES}
            print(length, found[length], file=sys.stderr)
    ratios = {length: _over_dense(at) for length, at in found.items()}
    crossover = {
        case: next((length for length, over in ratios.items() if over[case] < 1), None)
        for case in ("chooses", "shares")
    }
    found_and_ratios = {"measured": found, "seconds_over_dense": ratios, "crossover": crossover}
    print(json.dumps({"topk": args.topk, **found_and_ratios}, indent=2))


def _over_dense(at: dict[str, dict[str, float]]) -> dict[str, float]:
    return {case: round(at[case]["seconds"] / at["dense"]["seconds"], 2) for case in ("chooses", "shares")}


if __name__ == "__main__":
    main()
