"""rlcore's loop against a bare asyncio client, sending the same requests to the same SGLang server.

    python tests/benchmarks/bench_sglang.py --python PATH [--pairs 7] [--requests 64] [--length 128]

PATH is an interpreter with sglang; a server of a tiny model is started on the CPU. Prints JSON: response tokens
per second of both, medians of pairs that alternate, and the median ratio. Both get ids and log-probs; the bare
client asks for whole answers and reads nothing else of them.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from rlcore.config.schema import Recipe
from rlcore.config.sglang_arguments import installed_arguments
from rlcore.data.sample import Sample
from rlcore.rollout.generation import Generator
from rlcore.rollout.sglang.arguments import ServerPlace, server_command
from rlcore.rollout.sglang.engine import SGLangEngine, open_engine
from rlcore.rollout.sglang.server import ServerProcess, free_port
from rlcore.telemetry.log_files import LogFolder
from rlcore.testing.tiny import tiny_checkpoint, tiny_tokenizer

SHAPE = {
    "model_type": "glm4",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
}
PROMPT = 64
GROUP = 8


class NoScore:
    """Rewards are no part of what is measured."""

    async def score(self, samples: list[Sample]) -> list[Any]:
        return []


@asynccontextmanager
async def no_update(workers: Any, version: int) -> Any:
    raise NotImplementedError
    yield


def groups(count: int) -> list[list[Sample]]:
    def sample(group: int, index: int) -> Sample:
        prompt = [(group * 31 + place) % 500 for place in range(PROMPT)]
        return Sample("", group=group, index=index, prompt_tokens=prompt)

    return [[sample(group, index) for index in range(GROUP)] for group in range(count // GROUP)]


async def loop_tokens(engine: SGLangEngine, tokenizer: Any, recipe: Recipe, count: int) -> int:
    generator = Generator(engine, NoScore(), tokenizer, recipe.rollout, stop_token_ids=(), seed=0)
    made = await generator.generate(groups(count), recipe.rollout)
    return sum(len(sample.tokens) for group in made for sample in group)


async def bare_tokens(session: aiohttp.ClientSession, url: str, length: int, count: int) -> int:
    async def one(sample: Sample) -> int:
        body = {
            "input_ids": list(sample.prompt_tokens),
            "sampling_params": {"max_new_tokens": length, "temperature": 1.0, "ignore_eos": True},
            "return_logprob": True,
        }
        async with session.post(f"{url}/generate", json=body) as response:
            return len((await response.json())["output_ids"])

    return sum(await asyncio.gather(*(one(sample) for group in groups(count) for sample in group)))


async def rate(work: Callable[[], Awaitable[int]]) -> float:
    start = time.perf_counter()
    return await work() / (time.perf_counter() - start)


async def compare(server: ServerProcess, tokenizer: Any, recipe: Recipe, options: Any) -> dict[str, float]:
    await server.wait_healthy()
    engine = await open_engine([server.url], no_update, vocab_size=SHAPE["vocab_size"])
    ours, bare = [], []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def loop() -> None:
            # Nothing of an earlier round is in the server's cache for either.
            await engine.flush()
            ours.append(await rate(lambda: loop_tokens(engine, tokenizer, recipe, options.requests)))

        async def client() -> None:
            await engine.flush()
            bare.append(await rate(lambda: bare_tokens(session, server.url, options.length, options.requests)))

        for pair in range(options.pairs + 1):
            for side in (loop, client) if pair % 2 else (client, loop):
                await side()
    await engine.close()
    ratios = [one / other for one, other in zip(ours[1:], bare[1:], strict=True)]
    return {
        "ours": round(statistics.median(ours[1:])),
        "bare": round(statistics.median(bare[1:])),
        "ratio": round(statistics.median(ratios), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "model")
        tiny_checkpoint(checkpoint, SHAPE)
        tokenizer = tiny_tokenizer(checkpoint, chat_template="", special_tokens=["<e>"], eos_token="<e>")
        sglang = {"python": options.python}
        recipe = Recipe.model_validate(
            {
                "model": {"checkpoint": str(checkpoint), "dtype": "float32"},
                "rollout": {"max_response_tokens": options.length, "sglang": sglang},
            }
        )
        known = installed_arguments(options.python)
        command = server_command(recipe, str(checkpoint), ServerPlace("127.0.0.1", free_port()), known)
        server = ServerProcess(command, LogFolder(Path(folder)).file("server.log"))
        try:
            print(json.dumps(asyncio.run(compare(server, tokenizer, recipe, options)), indent=2))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
