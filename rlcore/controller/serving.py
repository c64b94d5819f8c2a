"""The SGLang servers of a run: started where its site has them or attached to, one engine on the policy's.

Servers that were started end with the run; those that were attached to stay.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from rlcore.bridge.fp8 import read_fp8_format
from rlcore.cluster.placement import Process
from rlcore.config.schema import Recipe
from rlcore.config.sglang_arguments import serving_arguments
from rlcore.controller.preparation import Prepared
from rlcore.controller.site import Site
from rlcore.errors import fail
from rlcore.layout.servers import servers_of
from rlcore.models.hf_config import read_hf_config
from rlcore.rollout.sglang.broadcast_updates import BroadcastTransport
from rlcore.rollout.sglang.disk_update import DiskTransport
from rlcore.rollout.sglang.engine import SGLangEngine, Updates, open_engine
from rlcore.rollout.sglang.joint_server import JointServer
from rlcore.rollout.sglang.server import Server
from rlcore.rollout.sglang.updates import TensorTransport, served_updates
from rlcore.telemetry.log_files import LogFolder

ROUTER_READY = "/readiness"


@asynccontextmanager
async def running_servers(prepared: Prepared, site: Site, logs: LogFolder) -> AsyncIterator[SGLangEngine]:
    """Have servers of the policy answer; what those started print is in `logs`.

    Raises RlcoreError for servers that do not start, ServerLost for one at a URL that does not answer.
    """
    checkpoint = Path(prepared.recipe.rollout.checkpoint or prepared.checkpoint).expanduser().resolve()
    settings = prepared.recipe.rollout.sglang
    # All nodes have to see it.
    shared = logs.path.parent if site.cluster else None
    with TemporaryDirectory(prefix="rlcore-weights-", dir=shared) as scratch, ExitStack() as ends:
        # Before any server: what a checkpoint's files say may be refused.
        updates = _updates(prepared.recipe, site, checkpoint, Path(scratch))
        if settings.urls:
            policy = Served(list(settings.urls), {})
        else:
            policy = await start_servers(prepared.recipe, site, logs, ends)
        engine = await open_engine(
            policy.urls,
            updates,
            vocab_size=prepared.model.spec.vocab_size,
            router=policy.router,
            is_split=policy.is_split,
            processes=policy.servers,
            lost_after=settings.lost_after,
        )
        try:
            yield engine
        finally:
            await engine.close()


@dataclass(frozen=True)
class Served:
    """Servers of one model, those started by URL; `is_split` where some only read and others only write."""

    urls: list[str]
    servers: dict[str, Server]
    router: str | None = None
    is_split: bool = False


async def start_servers(recipe: Recipe, site: Site, logs: LogFolder, ends: ExitStack) -> Served:
    """Start the servers of all models at once, and wait for them; returns those of the policy.

    The addresses of the others are printed. Raises RlcoreError for one that does not start.
    """
    processes = site.placement.of("server")
    _check_routers(recipe, processes)
    servers: dict[str, dict[str, Server]] = {one.model: {} for one in processes}
    for number, parts in enumerate(_by_server(processes)):
        server = _server(site, parts, logs, f"sglang-{number}", ends)
        servers[parts[0].model][server.url] = server
    await asyncio.gather(*(one.wait_healthy() for model in servers.values() for one in model.values()))
    routers = await _start_routers(recipe, site, logs, ends)
    policy = _policy(recipe)
    for model in (name for name in servers if name != policy):
        print(f"model {model} is served at {routers.get(model) or ', '.join(servers[model])}", flush=True)
    is_split = any("bootstrap" in one.ports for one in processes if one.model == policy)
    return Served(list(servers[policy]), servers[policy], routers.get(policy), is_split)


def _policy(recipe: Recipe) -> str:
    """The name of the model that the trainer's weights go to."""
    return next(group.model for group in servers_of(recipe) if group.follow_policy)


def _by_server(processes: Sequence[Process]) -> list[list[Process]]:
    """The processes of each server, which stand next to each other."""
    grouped = groupby(processes, key=lambda one: (one.position["group"], one.position["engine"]))
    return [list(parts) for _, parts in grouped]


def _server(site: Site, parts: Sequence[Process], logs: LogFolder, log: str, ends: ExitStack) -> Server:
    """Start a server; where it is of several processes they have logs of their own."""
    started = []
    for index, process in enumerate(parts):
        name = f"{log}-{index}.log" if len(parts) > 1 else f"{log}.log"
        started.append(site.start(process, logs.file(name)))
        ends.callback(started[-1].stop)
    return JointServer(started) if len(started) > 1 else started[0]


def _check_routers(recipe: Recipe, processes: Sequence[Process]) -> None:
    """Between servers that read and servers that write a router has to stand."""
    settings = recipe.rollout.sglang
    is_split = any("bootstrap" in one.ports for one in processes)
    if is_split and not (settings.router and serving_arguments(settings.python).router):
        message = "prefill and decode servers are reached through a router only, and sglang-router is missing"
        raise fail("rollout.sglang.router", message, "router: true, and pip install sglang-router")


async def _start_routers(recipe: Recipe, site: Site, logs: LogFolder, ends: ExitStack) -> dict[str, str]:
    """Start routers where there is something to balance and one is installed; returns their URLs by model."""
    if not serving_arguments(recipe.rollout.sglang.python).router:
        return {}
    routers = {}
    for index, process in enumerate(site.placement.of("router")):
        router = site.start(process, logs.file(f"router-{index}.log" if index else "router.log"))
        ends.callback(router.stop)
        # It answers before its workers are known to it.
        await router.wait_healthy(ROUTER_READY)
        routers[process.model] = router.url
    return routers


def _updates(recipe: Recipe, site: Site, checkpoint: Path, scratch: Path) -> Updates:
    """The way of weights that the recipe names, in the servers' own format."""
    fp8 = read_fp8_format(checkpoint, read_hf_config(checkpoint))
    way = recipe.sync.transport
    # Memory is shared inside a node, and a GPU is in a collective once.
    is_far = any(one.node for one in site.placement.of("server") if one.model == _policy(recipe))
    if way == "auto":
        way = ("disk" if is_far else "tensor") if recipe.cluster.colocate else "broadcast"
    if way == "tensor":
        if is_far:
            message = "servers on other nodes have no memory in common with the trainer"
            raise fail("sync.transport", message, "transport: auto")
        return served_updates(TensorTransport(fp8=fp8))
    if way == "broadcast":
        backend: Literal["gloo", "nccl"] = "nccl" if recipe.cluster.gpus_per_node else "gloo"
        return served_updates(BroadcastTransport(backend, fp8=fp8))
    return served_updates(DiskTransport(scratch / "weights", checkpoint, delta=way == "delta", fp8=fp8))
