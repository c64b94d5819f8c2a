"""A real SGLang server on this machine's CPU, in the environment that `make test-sglang` makes."""

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rlcore.config.schema import Recipe
from rlcore.config.sglang_arguments import installed_arguments
from rlcore.rollout.sglang.arguments import ServerPlace, server_command
from rlcore.rollout.sglang.disk_update import disk_updates
from rlcore.rollout.sglang.engine import open_engine
from rlcore.rollout.sglang.server import ServerProcess, free_port
from rlcore.telemetry.log_files import LogFolder

INSTALLED = Path(__file__).parents[2] / ".venv-sglang" / "bin" / "python"
SHIM = Path(__file__).parent / "shim"
START_SECONDS = 300
# Where all share two cores a server runs far ahead of those who watch it, and nothing would be interrupted.
STEP_SECONDS = 0.008


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
