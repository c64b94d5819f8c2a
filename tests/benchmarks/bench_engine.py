"""The local engine against transformers' `generate` and its continuous batching, in one run.

    python tests/benchmarks/bench_engine.py [--size 1m 30m] [--repeats 3] [--threads 2]

Prints JSON: {size: {equal: {ours, generate, ratio}, mixed: {ours, generate, continuous_batching, ratios}}} in
response tokens per second, best of the repeats, which alternate. Ours and continuous batching return
log-probs, `generate` does not.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import time
from collections.abc import Callable

import torch
from rlcore_glm4.spec import glm4_spec
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    Glm4Config,
    Glm4ForCausalLM,
    PreTrainedModel,
)

from rlcore.rollout.engine import Request, SamplingParams
from rlcore.rollout.local import LocalEngine
from rlcore.threads import compute_with

CONCURRENCY = 32
PROMPT = 32
EQUAL = 128
MIXED = 512
LONGEST = 256
SHAPES = {
    "1m": {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    "30m": {
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
}
Work = tuple[list[list[int]], list[int]]


def build(size: str) -> PreTrainedModel:
    """A model with random weights; the same ones at every call."""
    torch.manual_seed(0)
    config = Glm4Config(**SHAPES[size], max_position_embeddings=512, attention_bias=True, pad_token_id=0)
    return Glm4ForCausalLM(config).eval()


def equal_work(requests: int) -> Work:
    return prompts(requests), [EQUAL] * requests


def mixed_work(requests: int) -> Work:
    """Lognormal lengths: median 48, sigma 0.9, cut to 8 … 256."""
    rng = random.Random(0)
    lengths = [round(min(LONGEST, max(8, 48 * rng.lognormvariate(0, 0.9)))) for _ in range(requests)]
    return prompts(requests), lengths


def prompts(count: int) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(5, 500) for _ in range(PROMPT)] for _ in range(count)]


def ours(model: PreTrainedModel) -> Callable[[Work], None]:
    glm4_spec(model.config.to_dict()).serve_transformers(model)
    engine = LocalEngine.from_model(model, concurrency=CONCURRENCY)

    async def one(index: int, prompt: list[int], length: int) -> None:
        params = SamplingParams(max_new_tokens=length)
        async for delta in engine.generate(Request(str(index), prompt, params, key=(index, 0))):
            assert len(delta.tokens) == len(delta.log_probs) == length

    async def everything(work: Work) -> None:
        await asyncio.gather(*(one(i, *item) for i, item in enumerate(zip(*work, strict=True))))

    return lambda work: asyncio.run(everything(work))


def generate(model: PreTrainedModel) -> Callable[[Work], None]:
    """Static batches, each as long as its longest response."""

    def run(work: Work) -> None:
        for start in range(0, len(work[0]), CONCURRENCY):
            ids = torch.tensor(work[0][start : start + CONCURRENCY])
            steps = max(work[1][start : start + CONCURRENCY])
            settings = sampling(max_new_tokens=steps, min_new_tokens=steps)
            model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)

    return run


def continuous_batching(model: PreTrainedModel) -> Callable[[Work], None]:
    settings = ContinuousBatchingConfig(
        page_size=32,
        num_blocks=512,
        max_batch_tokens=2048,
        max_requests_per_batch=CONCURRENCY,
        return_logprobs=True,
        use_cuda_graph=False,
        use_async_batching=False,
        seed=1,
    )

    def run(work: Work) -> None:
        manager = model.init_continuous_batching(
            generation_config=sampling(max_new_tokens=LONGEST, eos_token_id=-1),
            continuous_batching_config=settings,
        )
        manager.start()
        for prompt, length in zip(*work, strict=True):
            manager.add_request(prompt, max_new_tokens=length)
        for _ in work[0]:
            assert manager.get_result(timeout=600).logprobs
        manager.stop(block=True, timeout=10)

    return run


def sampling(**settings: int) -> GenerationConfig:
    return GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0, **settings)


def speeds(contenders: dict[str, Callable[[Work], None]], work: Work, repeats: int) -> dict[str, float]:
    """Tokens per second of each, best of alternating repeats after one short warm-up."""
    best = dict.fromkeys(contenders, 0.0)
    for run in contenders.values():
        run((work[0][:CONCURRENCY], [8] * CONCURRENCY))
    for _ in range(repeats):
        for name, run in contenders.items():
            start = time.perf_counter()
            run(work)
            best[name] = max(best[name], sum(work[1]) / (time.perf_counter() - start))
    return {name: round(speed, 1) for name, speed in best.items()}


def measure(size: str, repeats: int) -> dict[str, object]:
    contenders = {
        "ours": ours(build(size)),
        "generate": generate(build(size)),
        "continuous_batching": continuous_batching(build(size)),
    }
    static = {name: contenders[name] for name in ("ours", "generate")}
    equal = speeds(static, equal_work(CONCURRENCY), repeats)
    mixed = speeds(contenders, mixed_work(MIXED), repeats)
    rivals = ("generate", "continuous_batching")
    return {
        "equal": {**equal, "ratio": round(equal["ours"] / equal["generate"], 2)},
        "mixed": {**mixed, "ratios": {name: round(mixed["ours"] / mixed[name], 2) for name in rivals}},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    compute_with(options.threads)
    logging.disable(logging.WARNING)
    with contextlib.redirect_stderr(None), torch.no_grad():
        result = {size: measure(size, options.repeats) for size in options.size}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
