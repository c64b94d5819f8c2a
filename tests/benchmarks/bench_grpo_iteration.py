"""Whole GRPO iterations (rollout, rewards, training, sync) against TRL's GRPOTrainer on the same tiny model.

    python tests/benchmarks/bench_grpo_iteration.py [--trl-python PYTHON] [--iterations N] [--rounds N]
        [--threads N]

Same weights, prompts, reward, threads and token counts on both sides, fp32, KL off, one optimizer step a
rollout, 16 prompts x 8 samples. Both sides are made to end each response at a given length, which rlcore's
scheduler does not know. TRL runs in an environment of its own (made in .venv-trl unless one is given). Rounds
alternate; printed is JSON with completion tokens per second of the best iteration of each, and their ratio.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import venv
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlcore.cli.running import quiet_libraries
from rlcore.config.load import load_recipe
from rlcore.controller.assembly import make_generator, running_engine, running_policy
from rlcore.controller.checkpoints import RunState
from rlcore.controller.grpo import Actors, Grpo
from rlcore.controller.preparation import prepare
from rlcore.controller.run_start import RunPlace, record, start
from rlcore.controller.session import open_session
from rlcore.controller.site import chosen_site
from rlcore.controller.train import Materials, gather
from rlcore.controller.turns import Turns
from rlcore.rollout.engine import Delta, Request
from rlcore.rollout.local import LocalEngine
from rlcore.rollout.rewards import RewardRunner
from rlcore.telemetry.log_files import LogFolder
from rlcore.telemetry.metrics import read_metrics
from rlcore.testing.tiny import tiny_checkpoint, tiny_tokenizer

HERE = Path(__file__).parent
PROMPTS, SAMPLES, PROMPT_TOKENS = 16, 8, 16
MODEL = {
    "model_type": "glm4",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "attention_bias": True,
    "max_position_embeddings": 1024,
    "pad_token_id": 256,
    "eos_token_id": 256,
}
RECIPE = """
name: bench
model: {{checkpoint: {folder}/model, dtype: float32}}
data: {{path: {folder}/prompts.jsonl, chat_template: false, shuffle: false}}
rewards: [{{use: exact, options: {{pattern: "1"}}}}]
rollout:
  prompts_per_step: {prompts}
  samples_per_prompt: {samples}
  max_response_tokens: {longest}
  local: {{concurrency: {concurrency}}}
train: {{steps: {steps}, threads: {threads}, max_tokens_per_gpu: 8192}}
optimizer: {{lr: 1.0e-6}}
checkpoints: {{hf: false}}
telemetry: {{save_rollouts: false}}
"""


class FixedLengths:
    """An engine whose responses have given lengths, by sample; everything else is the engine's own."""

    def __init__(self, engine: LocalEngine, lengths: list[int]) -> None:
        self._engine = engine
        self._lengths = lengths

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, request: Request) -> AsyncIterator[Delta]:
        group, index = request.key
        length = self._lengths[group % PROMPTS * SAMPLES + index]
        params = replace(request.params, max_new_tokens=length, stop_token_ids=())
        return self._engine.generate(replace(request, params=params))


def write_world(folder: Path) -> list[str]:
    """The model, and prompts of equal length."""
    tiny_checkpoint(folder / "model", MODEL)
    tiny_tokenizer(folder / "model", chat_template="", special_tokens=["<|end|>"], eos_token="<|end|>")
    prompts = ["".join(chr(97 + (i * 7 + j * 3) % 26) for j in range(PROMPT_TOKENS)) for i in range(PROMPTS)]
    rows = [json.dumps({"prompt": prompt, "label": "1"}) for prompt in prompts]
    (folder / "prompts.jsonl").write_text("\n".join(rows))
    return prompts


def mixed_lengths() -> list[int]:
    """8 to 256 tokens, lognormal with median 48 and sigma 0.9."""
    rng = random.Random(0)
    return [max(8, min(256, round(rng.lognormvariate(3.871, 0.9)))) for _ in range(PROMPTS * SAMPLES)]


def rlcore_side(folder: Path, run: Path, lengths: list[int], iterations: int, threads: int) -> list[float]:
    """Seconds of each iteration after the first."""
    recipe = folder / f"{run.name}.yaml"
    recipe.write_text(
        RECIPE.format(
            folder=folder,
            prompts=PROMPTS,
            samples=SAMPLES,
            longest=max(lengths),
            concurrency=PROMPTS * SAMPLES,
            steps=iterations + 1,
            threads=threads,
        )
    )
    materials = gather(prepare(load_recipe(str(recipe)), "train"))
    asyncio.run(run_loop(materials, run, lengths))
    return [row["time/step"] for row in read_metrics(run / "metrics.jsonl")][1:]


async def run_loop(materials: Materials, run: Path, lengths: list[int]) -> None:
    prepared = materials.prepared
    recipe = prepared.recipe
    scorer = RewardRunner.from_recipe(recipe.rewards, prepared.catalog)
    updates = materials.total_updates
    with (
        chosen_site(prepared, serves=True) as site,
        running_policy(prepared, site, recipe.optimizer, updates, temperature=1.0, quiet=True) as policy,
    ):
        async with running_engine(prepared, site, LogFolder(Path())) as local:
            engine = FixedLengths(local, lengths)
            generator = make_generator(prepared, engine, scorer)
            turns = Turns(recipe, policy, engine)
            actors = Actors(policy, engine, generator, generator, materials.source(), turns)
            folder = start(prepared.model.plugins, RunPlace(run))
            record(folder, prepared.loaded, prepared.model.plugins)
            state = RunState(0, actors.source.state())
            with open_session(recipe, folder, materials.total_steps, state, policy, quiet=True) as session:
                await Grpo(recipe, actors, materials.algorithm, (), session).run(materials.total_steps)
    await scorer.close()


def trl_side(
    python: Path, folder: Path, prompts: list[str], lengths: list[int], iterations: int, threads: int
) -> list[float]:
    """Seconds of each iteration after the first, from a process of TRL's own environment."""
    spec = {
        "checkpoint": str(folder / "model"),
        "prompts": prompts,
        "prompt_tokens": PROMPT_TOKENS,
        "lengths": lengths,
        "samples_per_prompt": SAMPLES,
        "iterations": iterations,
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [python, HERE / "trl_side.py", folder / "spec.json"]
    # Not by torch.set_num_threads, which slows its attention down (rlcore.threads).
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    out = subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])["seconds"]


def trl_environment() -> Path:
    """The interpreter of an environment that holds TRL, made at the first call."""
    folder = HERE.parents[1] / ".venv-trl"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True)
        requirements = HERE / "trl-requirements.txt"
        subprocess.run([folder / "bin/pip", "install", "--quiet", "-r", requirements], check=True)
        (folder / "ready").touch()
    return folder / "bin/python"


def compare(python: Path, lengths: list[int], iterations: int, rounds: int, threads: int) -> dict[str, float]:
    """Alternate the two sides and compare the best iteration of each."""
    seconds: dict[str, list[float]] = {"rlcore": [], "trl": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = write_world(folder)
        for number in range(rounds):
            seconds["rlcore"] += rlcore_side(folder, folder / f"run-{number}", lengths, iterations, threads)
            seconds["trl"] += trl_side(python, folder, prompts, lengths, iterations, threads)
    best = {side: min(values) for side, values in seconds.items()}
    return {
        "tokens": sum(lengths),
        "rlcore_seconds": round(best["rlcore"], 3),
        "trl_seconds": round(best["trl"], 3),
        "rlcore_tokens_per_second": round(sum(lengths) / best["rlcore"]),
        "trl_tokens_per_second": round(sum(lengths) / best["trl"]),
        "ratio": round(best["trl"] / best["rlcore"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", type=Path, help="interpreter of an environment that holds trl")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of either side")
    args = parser.parse_args()
    quiet_libraries()
    python = args.trl_python or trl_environment()
    cases = {"equal": [32] * (PROMPTS * SAMPLES), "mixed": mixed_lengths()}
    sizes = args.iterations, args.rounds, args.threads
    result = {name: compare(python, lengths, *sizes) for name, lengths in cases.items()}
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
