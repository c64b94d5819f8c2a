"""Where the processes of a run stand: on this machine, or on nodes of a Ray cluster that it joins and holds.

What each process is comes from `rlcore.cluster.placement`; here it meets real addresses.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rlcore.cluster.hostfile import read_hostfile
from rlcore.cluster.placement import Placement, Process, as_planned, place
from rlcore.config.schema import Recipe, Rollout
from rlcore.config.sglang_arguments import Arguments, known_arguments, serving_arguments
from rlcore.controller.preparation import Prepared
from rlcore.errors import fail
from rlcore.layout.plan import Layout
from rlcore.layout.seats import trainer_seats
from rlcore.rollout.sglang.arguments import Command
from rlcore.rollout.sglang.server import Server, ServerProcess, free_port
from rlcore.telemetry.log_files import LogFile

if TYPE_CHECKING:
    from rlcore.cluster.cluster_ray import ClusterRay, Node

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Site:
    """The processes of a run with their places; `cluster` where they are on nodes of one."""

    placement: Placement
    cluster: "ClusterRay | None" = None

    def start(self, process: Process, log: LogFile) -> Server:
        """Start a server or router.

        Raises RlcoreError where its node has left or has no port for it; of a node of a cluster,
        `wait_healthy` says the latter.
        """
        command = Command(process.command, process.environment, process.url, process.own_ports)
        if self.cluster is None:
            return ServerProcess(_on_own_gpus(command, process), log)
        from rlcore.cluster.remote_server import RemoteServer

        return RemoteServer(command, log, self.cluster, process.node, process.reserved_gpus)


@contextmanager
def chosen_site(prepared: Prepared, *, serves: bool) -> Iterator[Site]:
    """Have a place for every process of a recipe, of servers only if it `serves`; given back at the end.

    Raises RlcoreError where the cluster that the recipe names cannot be joined, or has no place.
    """
    recipe = prepared.recipe if serves else _without_servers(prepared.recipe)
    address = _address(recipe)
    if address is None:
        port = as_planned if recipe.cluster.gpus_per_node else _free
        yield Site(place(recipe, prepared.layout, _known(recipe), hosts=[HOST], port=port))
        return
    from rlcore.cluster.cluster_ray import ClusterRay

    hostfile = recipe.cluster.hostfile
    home = ClusterRay(address, [host.address for host in read_hostfile(hostfile)] if hostfile else [])
    try:
        yield Site(_hold(home, recipe, prepared.layout), home)
    finally:
        home.stop()


def _without_servers(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"rollout": Rollout()})


def _address(recipe: Recipe) -> str | None:
    """The Ray cluster to join, if any. A run of one process needs no Ray."""
    if not recipe.cluster.address:
        return None
    from rlcore.cluster.cluster_ray import running_cluster

    return running_cluster(recipe.cluster.address)


def _hold(home: "ClusterRay", recipe: Recipe, layout: Layout) -> Placement:
    """Place all processes on the cluster's nodes, and reserve these."""
    cluster = recipe.cluster
    nodes = home.choose(cluster.nodes, cluster.gpus_per_node)
    _check_whole(recipe, nodes)
    seats = [seat.node for seat in trainer_seats(recipe, layout.world_size)]
    cores = min(node.cpus for node in nodes) // max(Counter(seats).values())
    able = home.fit(cluster.gpus_per_node)
    hosts = [node.address for node in able]
    # Which ports are free is known of this machine only.
    is_here = set(hosts) == {home.nodes[0].address}
    placement = place(
        recipe,
        layout,
        _known(recipe),
        hosts=hosts,
        node_gpus=min(node.gpus for node in able),
        threads=max(1, cores),
        port=_free if is_here and not cluster.gpus_per_node else as_planned,
    )
    nodes = home.choose(len(placement.bundles), cluster.gpus_per_node)
    environment = placement.of("trainer")[0].environment
    home.reserve(nodes, placement.bundles, seats, environment)
    return placement


def _check_whole(recipe: Recipe, nodes: "list[Node]") -> None:
    """Which of a node's GPUs trainers have is Ray's choice; servers that share them must have the same."""
    each = recipe.cluster.gpus_per_node
    partly = next((node for node in nodes if node.gpus > each > 0), None)
    if recipe.cluster.colocate and partly:
        message = f"a colocated run has all GPUs of its nodes, and {partly.address} has {partly.gpus}"
        raise fail("cluster.gpus_per_node", message, f"gpus_per_node: {partly.gpus}")


def _known(recipe: Recipe) -> Arguments:
    """What the servers to be started take."""
    if recipe.rollout.engine != "sglang" or recipe.rollout.sglang.urls:
        return known_arguments()
    return serving_arguments(recipe.rollout.sglang.python)


def _free(planned: int) -> int:
    """Runs on a CPU share a machine, so that planned ports may be taken."""
    return free_port()


def _on_own_gpus(command: Command, process: Process) -> Command:
    """GPUs are counted among those that this process sees."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if not process.gpus or seen == [""]:
        return command
    visible = ",".join(seen[gpu] for gpu in process.gpus)
    return replace(command, environment={**command.environment, "CUDA_VISIBLE_DEVICES": visible})
