"""What it costs to score in processes of their own: 16 groups of 8 samples, and the same in this process.

    python tests/benchmarks/bench_rewards.py

Prints JSON: milliseconds per step of 128 samples, and their ratio, for two rewards, with short responses and
with responses of 4,096 tokens.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

from rlcore.config.section import UseReward
from rlcore.data.sample import Sample
from rlcore.registry import Catalog
from rlcore.rollout.rewards import RewardRunner

REPEATS = 30


def samples(tokens: int) -> list[Sample]:
    """16 groups of 8, every second answer right."""
    return [
        Sample(
            "1 + 1 = ?",
            label=str(group),
            group=group,
            index=index,
            response=f"so \\boxed{{{group + index % 2}}}",
            tokens=list(range(tokens)),
            log_probs=[-0.5] * tokens,
            loss_mask=[1] * tokens,
            versions=[0] * tokens,
        )
        for group in range(16)
        for index in range(8)
    ]


async def milliseconds(score: Callable[[list[Sample]], Awaitable[Any]], batch: list[Sample]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        await score(batch)
        times.append(1e3 * (time.perf_counter() - start))
    return median(times)


async def compare(name: str, tokens: int) -> dict[str, object]:
    catalog, batch = Catalog.installed(), samples(tokens)
    plugin = catalog.load("reward", name)
    here = plugin.create(plugin.parse_options({}, name))
    runner = RewardRunner.from_recipe([UseReward(use=name)], catalog)
    await runner.score(batch)
    through_runner = await milliseconds(runner.score, batch)
    in_process = await milliseconds(here.score, batch)
    await runner.close()
    return {
        "reward": name,
        "tokens_per_response": tokens,
        "runner_ms": round(through_runner, 2),
        "in_process_ms": round(in_process, 2),
        "ratio": round(through_runner / in_process, 2),
    }


if __name__ == "__main__":
    cases = [(name, tokens) for name in ("exact", "math") for tokens in (16, 4096)]
    print(json.dumps([asyncio.run(compare(name, tokens)) for name, tokens in cases], indent=2))
