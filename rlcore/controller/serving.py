"""The SGLang servers of a run: launched on this machine's CPU or attached to, one engine on top.

Servers that were launched end with the run; those that were attached to stay.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from rlcore.bridge.fp8 import read_fp8_format
from rlcore.config.schema import Recipe
from rlcore.config.sglang_arguments import serving_arguments
from rlcore.controller.preparation import Prepared
from rlcore.models.hf_config import read_hf_config
from rlcore.rollout.sglang.arguments import ServerPlace, router_command, server_command
from rlcore.rollout.sglang.broadcast_updates import BroadcastTransport
from rlcore.rollout.sglang.disk_update import DiskTransport
from rlcore.rollout.sglang.engine import SGLangEngine, Updates, open_engine
from rlcore.rollout.sglang.server import ServerProcess, free_port
from rlcore.rollout.sglang.updates import TensorTransport, served_updates

HOST = "127.0.0.1"
ROUTER_READY = "/readiness"


@asynccontextmanager
async def running_servers(prepared: Prepared, logs: Path) -> AsyncIterator[SGLangEngine]:
    """Have servers of the policy answer; what those launched print is in `logs`.

    Raises RlcoreError for servers that do not start, ServerLost for one at a URL that does not answer.
    """
    checkpoint = Path(prepared.recipe.rollout.checkpoint or prepared.checkpoint).expanduser().resolve()
    with TemporaryDirectory(prefix="rlcore-weights-") as scratch, ExitStack() as ends:
        settings = prepared.recipe.rollout.sglang
        urls, router, servers = list(settings.urls), None, {}
        if not urls:
            servers = await _launch(prepared, checkpoint, logs, ends)
            urls = list(servers)
            router = await _launch_router(prepared, urls, logs, ends)
        engine = await open_engine(
            urls,
            _updates(prepared.recipe, checkpoint, Path(scratch)),
            vocab_size=prepared.model.spec.vocab_size,
            router=router,
            processes=servers,
            lost_after=settings.lost_after,
        )
        try:
            yield engine
        finally:
            await engine.close()


def _updates(recipe: Recipe, checkpoint: Path, scratch: Path) -> Updates:
    """The way of weights that the recipe names, in the servers' own format."""
    fp8 = read_fp8_format(checkpoint, read_hf_config(checkpoint))
    way = recipe.sync.transport
    if way == "auto":
        way = "tensor" if recipe.cluster.colocate else "broadcast"
    if way == "tensor":
        return served_updates(TensorTransport(fp8=fp8))
    if way == "broadcast":
        backend: Literal["gloo", "nccl"] = "nccl" if recipe.cluster.gpus_per_node else "gloo"
        return served_updates(BroadcastTransport(backend, fp8=fp8))
    return served_updates(DiskTransport(scratch / "weights", checkpoint, delta=way == "delta", fp8=fp8))


async def _launch(
    prepared: Prepared, checkpoint: Path, logs: Path, ends: ExitStack
) -> dict[str, ServerProcess]:
    """Start all servers at once and wait for them; returns them by URL."""
    recipe = prepared.recipe
    known = serving_arguments(recipe.rollout.sglang.python)
    places = [ServerPlace(HOST, free_port()) for _ in range(max(1, recipe.rollout.num_gpus))]
    servers = []
    for index, place in enumerate(places):
        command = server_command(recipe, str(checkpoint), place, known)
        servers.append(ServerProcess(command, logs / f"sglang-{index}.log"))
        ends.callback(servers[-1].stop)
    await asyncio.gather(*(server.wait_healthy() for server in servers))
    return {server.url: server for server in servers}


async def _launch_router(prepared: Prepared, urls: list[str], logs: Path, ends: ExitStack) -> str | None:
    """Start a router where there is something to balance and one is installed; returns its URL."""
    recipe = prepared.recipe
    wanted = recipe.rollout.sglang.router and len(urls) > 1
    if not (wanted and serving_arguments(recipe.rollout.sglang.python).router):
        return None
    router = ServerProcess(router_command(recipe, urls, ServerPlace(HOST, free_port())), logs / "router.log")
    ends.callback(router.stop)
    # It answers before its workers are known to it.
    await router.wait_healthy(ROUTER_READY)
    return router.url
