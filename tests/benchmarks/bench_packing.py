"""The schedule against first-fit with Karmarkar-Karp, on 16 distributions of lengths.

    python tests/benchmarks/bench_packing.py [--samples 4096] [--step 1024]

Prints JSON. Costs are the FLOPs of a dense model of 9B; no sample is longer than the cap. Figures are means
over the steps of a distribution, ratios over a step in which no rank waits; `milliseconds` is the best of five
schedules of all samples as one step.

First-fit with Karmarkar-Karp: samples are spread over ranks of equal cost, the rank whose samples need most
micro-batches by first-fit says how many each has, and each rank spreads its samples over that many of equal
tokens. The latter may pass the cap; `over_cap` is the share of micro-batches that do.
"""

import argparse
import heapq
import json
import time
from collections.abc import Callable, Sequence
from statistics import mean, median
from typing import Any

import numpy as np

from rlcore.data.packing import schedule
from rlcore.models.arithmetic import (
    attention_parameters,
    causal_attention_flops,
    gated_mlp_parameters,
    linear_flops,
)

LAYERS, HIDDEN, HEADS, GROUPS, HEAD_DIM, INTERMEDIATE, VOCABULARY = 40, 4096, 32, 2, 128, 13_696, 151_552
LAYER = attention_parameters(HIDDEN, HEADS, GROUPS, HEAD_DIM, qkv_bias=True) + gated_mlp_parameters(
    HIDDEN, INTERMEDIATE
)


def cost(length: int) -> float:
    return linear_flops(length, LAYERS * LAYER + HIDDEN * VOCABULARY) + LAYERS * causal_attention_flops(
        length, HEADS, HEAD_DIM
    )


Draw = Callable[[np.random.Generator, int, int], np.ndarray]
SHAPES: dict[str, Draw] = {
    "lognormal": lambda rng, cap, n: rng.lognormal(np.log(cap / 8), 0.7, n),
    "bimodal": lambda rng, cap, n: np.where(
        rng.random(n) < 0.8, rng.normal(cap / 12, cap / 40, n), rng.normal(cap * 0.7, cap / 12, n)
    ),
    "long-tailed": lambda rng, cap, n: cap / 16 * (1 + rng.pareto(1.5, n)),
    "uniform": lambda rng, cap, n: rng.uniform(64, cap, n),
}
SIZES = [(2, 4_608), (4, 8_192), (8, 12_288), (16, 16_384)]


Ranks = list[list[list[int]]]


def karmarkar_karp(values: Sequence[float], parts: int) -> list[list[int]]:
    """Split indices into `parts` lists of like sums: the largest differencing method."""
    heap = [
        (-value, index, [(value, [index]), *[(0.0, list[int]())] * (parts - 1)])
        for index, value in enumerate(values)
    ]
    heapq.heapify(heap)
    while len(heap) > 1:
        (_, order, most), (_, _, next_most) = heapq.heappop(heap), heapq.heappop(heap)
        joined = [(a + b, x + y) for (a, x), (b, y) in zip(most, reversed(next_most), strict=True)]
        joined.sort(key=lambda part: -part[0])
        heapq.heappush(heap, (joined[-1][0] - joined[0][0], order, joined))
    return [members for _, members in heap[0][2]]


def first_fit(lengths: Sequence[int], cap: int) -> int:
    """Micro-batches that the samples need, each sample put into the first with room."""
    rooms: list[int] = []
    for length in lengths:
        number = next((n for n, room in enumerate(rooms) if room >= length), len(rooms))
        if number == len(rooms):
            rooms.append(cap)
        rooms[number] -= length
    return len(rooms)


def baseline(lengths: Sequence[int], dp: int, cap: int) -> Ranks:
    ranks = karmarkar_karp([cost(length) for length in lengths], dp)
    count = max(first_fit([lengths[i] for i in rank], cap) for rank in ranks)
    return [
        [[rank[i] for i in members] for members in karmarkar_karp([lengths[i] for i in rank], count)]
        for rank in ranks
    ]


def figures(ranks: Ranks, lengths: Sequence[int], cap: int) -> dict[str, float]:
    costs = np.array([[sum(cost(lengths[i]) for i in members) for members in rank] for rank in ranks])
    tokens = np.array([[sum(lengths[i] for i in members) for members in rank] for rank in ranks])
    ideal = costs.sum() / len(ranks)
    return {
        "lockstep_over_ideal": costs.max(0).sum() / ideal,
        "makespan_over_ideal": costs.sum(1).max() / ideal,
        "token_fill": tokens.mean() / cap,
        "over_cap": (tokens > cap).mean(),
    }


def averaged(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(mean(row[name] for row in rows)), 4) for name in rows[0]}


def milliseconds(lengths: Sequence[int], dp: int, cap: int) -> float:
    def once() -> float:
        start = time.perf_counter()
        schedule(lengths, dp=dp, max_tokens_per_gpu=cap, global_batch_size=len(lengths), cost=cost)
        return time.perf_counter() - start

    return round(min(once() for _ in range(5)) * 1e3, 1)


def compare(shape: str, dp: int, cap: int, sizes: argparse.Namespace) -> dict[str, Any]:
    drawn = SHAPES[shape](np.random.default_rng(cap), cap, sizes.samples)
    lengths = drawn.clip(16, cap).astype(int).tolist()
    ours, theirs = [], []
    for start in range(0, len(lengths), sizes.step):
        part = lengths[start : start + sizes.step]
        planned = schedule(part, dp=dp, max_tokens_per_gpu=cap, global_batch_size=len(part), cost=cost)
        ours.append(figures(planned.steps[0].ranks, part, cap))
        theirs.append(figures(baseline(part, dp, cap), part, cap))
    return {
        "lengths": shape,
        "dp": dp,
        "cap": cap,
        "schedule": averaged(ours),
        "first_fit_karmarkar_karp": averaged(theirs),
        "milliseconds": milliseconds(lengths, dp, cap),
    }


def summary(rows: Sequence[dict[str, Any]], way: str) -> dict[str, float]:
    lockstep = [row[way]["lockstep_over_ideal"] for row in rows]
    means = {f"mean_{name}": value for name, value in averaged([row[way] for row in rows]).items()}
    return {"median_lockstep_over_ideal": median(lockstep), "worst_lockstep_over_ideal": max(lockstep), **means}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--step", type=int, default=1024)
    sizes = parser.parse_args()
    rows = [compare(shape, dp, cap, sizes) for shape in SHAPES for dp, cap in SIZES]
    found = {
        "sizes": vars(sizes),
        "schedule": summary(rows, "schedule"),
        "first_fit_karmarkar_karp": summary(rows, "first_fit_karmarkar_karp"),
        "worst_milliseconds": max(row["milliseconds"] for row in rows),
        "distributions": rows,
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
