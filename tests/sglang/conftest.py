"""A real SGLang server on this machine's CPU, in the environment that `make test-sglang` makes."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rlcore_glm4.demo import DEMO
from safetensors.torch import load_file

from rlcore.config.schema import Recipe
from rlcore.config.sglang_arguments import installed_arguments
from rlcore.rollout.sglang.arguments import ServerPlace, server_command
from rlcore.rollout.sglang.disk_update import disk_updates
from rlcore.rollout.sglang.engine import open_engine
from rlcore.rollout.sglang.server import ServerProcess, free_port
from rlcore.telemetry.log_files import LogFolder
from rlcore.telemetry.metrics import read_metrics
from rlcore.telemetry.rollouts import TRAINING, read_samples, sample_files

INSTALLED = Path(__file__).parents[2] / ".venv-sglang" / "bin" / "python"
SHIM = Path(__file__).parent / "shim"
START_SECONDS = 300
# Where all share two cores a server runs far ahead of those who watch it, and nothing would be interrupted.
STEP_SECONDS = 0.008

RECIPE = """\
base: {family}/tiny
name: served
model: {{checkpoint: {world}/model}}
data: {{path: {world}/train.jsonl}}
sft: {{data: {{path: {world}/warm_start.jsonl}}}}
rollout:
  engine: sglang
  num_gpus: 2  # servers, where the cluster has no GPU
  prompts_per_step: 8
  samples_per_prompt: 4
  sglang: {{python: {python}}}
train: {{steps: 2}}
eval: {{every: null, datasets: []}}
checkpoints: {{hf: false}}
"""


@pytest.fixture(scope="session")
def sglang_python(tmp_path_factory) -> Path:
    """That environment's interpreter with stand-ins for kernels that no CPU has; others never see them."""
    script = tmp_path_factory.mktemp("bin") / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={SHIM} exec {INSTALLED} "$@"\n')
    script.chmod(0o755)
    return script


@pytest.fixture(scope="session")
def launch(sglang_python, tmp_path_factory):
    """Start servers of a checkpoint, with a recipe's `rollout.sglang.args`; they end with the session."""
    running = []

    def start(checkpoint: Path, count: int = 1, **args) -> list[ServerProcess]:
        sglang = {"python": sglang_python, "args": args}
        recipe = Recipe.model_validate(
            {"model": {"checkpoint": str(checkpoint), "dtype": "float32"}, "rollout": {"sglang": sglang}}
        )
        known = installed_arguments(sglang_python)
        places = [ServerPlace("127.0.0.1", free_port()) for _ in range(count)]
        commands = [server_command(recipe, str(checkpoint), place, known) for place in places]
        logs = LogFolder(tmp_path_factory.mktemp("logs"))
        servers = [ServerProcess(command, logs.file(f"sglang-{i}.log")) for i, command in enumerate(commands)]
        running.extend(servers)

        async def wait():
            await asyncio.gather(*(server.wait_healthy(seconds=START_SECONDS) for server in servers))

        asyncio.run(wait())
        return servers

    yield start
    for server in running:
        server.stop()


@pytest.fixture(scope="session")
def write_recipe(sglang_python, tmp_path_factory):
    def write(family, demo):
        world = tmp_path_factory.mktemp(family)
        demo.write(world)
        file = world / "served.yaml"
        file.write_text(RECIPE.format(family=family, world=world, python=sglang_python))
        return file

    return write


@pytest.fixture(scope="session")
def recipe(write_recipe):
    return write_recipe("glm4", DEMO)


@pytest.fixture(scope="session")
def check_run():
    """Assert that a run has trained every prompt once, in its step, and that engine and trainer agree on all.

    No token is of weights that are more than `max_staleness` versions behind.
    """

    def check(run, steps, max_staleness=0):
        files = sample_files(run / "rollouts", TRAINING)
        assert list(files) == list(range(1, steps + 1))
        for step, path in files.items():
            samples = read_samples(path)
            groups = Counter(sample.group for sample in samples)
            assert groups == dict.fromkeys(range(8 * step - 8, 8 * step), 4)
            for sample in samples:
                assert len(sample.tokens) == len(sample.log_probs) == len(sample.versions)
                assert set(sample.versions) <= set(range(step - 1 - max_staleness, step))
        rows = read_metrics(run / "metrics.jsonl")
        gaps = [row["logprob_gap/max"] for row in rows if "logprob_gap/max" in row]
        assert gaps
        assert max(gaps) < 1e-5

    return check


@pytest.fixture(scope="session")
def server(launch, subject) -> ServerProcess:
    """A server of the subject."""
    (server,) = launch(subject.checkpoint)
    yield server
    server.stop()


@pytest.fixture
def opens(server, subject, tmp_path):
    """An engine on the server, with the subject's own weights again."""

    @asynccontextmanager
    async def attach():
        updates = disk_updates(tmp_path / "weights", subject.checkpoint)
        engine = await open_engine([server.url], updates, vocab_size=300)
        await engine.resume()
        await engine.workers[0].post("/slow_down", {"forward_sleep_time": STEP_SECONDS})
        async with engine.weight_update(0) as update:
            await update.send(load_file(subject.checkpoint / "model.safetensors"))
        try:
            yield engine
        finally:
            await engine.abort()
            await engine.close()

    return attach
