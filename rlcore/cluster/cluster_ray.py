"""A Ray cluster that runs already, joined by a run: its nodes in a fixed order, and what the run holds of each.

What it holds is a placement group, which ends with the run; the cluster goes on.
"""

import ipaddress
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.services import get_ray_address_from_environment
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlcore.cluster.driver import connect
from rlcore.cluster.placement import STRATEGY
from rlcore.errors import fail

AUTO = "auto"
# The port of a cluster that answers, answers at once.
_CONNECT_SECONDS = 5.0
# What is free is given in moments; what another run holds may be held for days.
_PLACE_SECONDS = 60.0
# Ray's workers, and servers that they start, give way to all other processes otherwise.
_NICENESS = {"RAY_worker_niceness": "0"}
_REMEDY = "the address of a head node: rlcore cluster up --hostfile FILE, or ray start --head --port 6379"


@dataclass(frozen=True)
class Node:
    """A node of the cluster and what it has in all."""

    id: str
    address: str
    port: int
    gpus: int
    cpus: int

    def __str__(self) -> str:
        return f"{self.address} ({self.gpus} GPUs, {self.cpus} CPUs)" if self.gpus else self.address


def running_cluster(address: str) -> str | None:
    """The address of a cluster that answers: the one asked for, or for `auto` the one of this machine, if any.

    The one of this machine is what RAY_ADDRESS names, as in a job of the cluster, or what `ray start` left.
    Raises RlcoreError for another that does not answer.
    """
    found = get_ray_address_from_environment(None, None) if address == AUTO else address
    if found and _answers(found):
        return str(found)
    if address == AUTO:
        return None
    raise fail("cluster.address", f"no Ray cluster answers at {address}", _REMEDY)


class ClusterRay:
    """A RayHome on several nodes. After it is made, `reserve` says which ranks are where.

    Joins the cluster at `address`; raises RlcoreError where that cannot be. `hosts` gives nodes their order;
    those that it lacks follow by address, and the node of this process comes before all.
    """

    # A node that says nothing more is given up by Ray within this time.
    silence_seconds = 40.0

    def __init__(self, address: str, hosts: Sequence[str] = ()) -> None:
        self.address = address
        self.folder = Path(tempfile.mkdtemp(prefix="rlcore-"))
        _join(address)
        here = ray.get_runtime_context().get_node_id()
        alive = [_node(record) for record in ray.nodes() if record["Alive"]]
        self.nodes = sorted(alive, key=lambda node: (node.id != here, *_order(node, hosts)))

    def fit(self, gpus: int) -> list[Node]:
        """The nodes with so many GPUs."""
        return [node for node in self.nodes if node.gpus >= gpus and node.cpus]

    def choose(self, count: int, gpus: int) -> list[Node]:
        """The first `count` nodes with so many GPUs. Raises RlcoreError where there are fewer."""
        fit = self.fit(gpus)
        if len(fit) < count:
            size = f" of {gpus} GPUs" if gpus else ""
            nodes = ", ".join(map(str, self.nodes))
            message = f"{count} nodes{size} are asked for; the Ray cluster at {self.address} has {nodes}"
            raise fail("cluster.nodes", message, f"nodes: {len(fit)}, or more nodes in the cluster")
        return fit[:count]

    def reserve(
        self,
        nodes: Sequence[Node],
        bundles: Sequence[Mapping[str, float]],
        ranks: Sequence[int],
        environment: Mapping[str, str],
    ) -> None:
        """Hold a bundle on each node; rank r is on the node of index ranks[r], with its share of the CPUs.

        Raises RlcoreError if what is asked for is not free.
        """
        self._ranks, self._chosen, self._environment = ranks, list(nodes), dict(environment)
        self._bundles = [dict(bundle) for bundle in bundles]
        selectors = [{"ray.io/node-id": node.id} for node in nodes]
        self._group = placement_group(
            self._bundles, strategy=STRATEGY, bundle_label_selector=selectors, name="rlcore"
        )
        if not self._group.wait(_PLACE_SECONDS):
            remove_placement_group(self._group)
            free = ", ".join(f"{name} {amount:g}" for name, amount in _free().items())
            message = f"the cluster at {self.address} has too little that is free on its nodes (in all: {free})"
            raise fail("cluster.nodes", message, "wait for the runs that hold it, or end them")

    def actor_options(self, rank: int) -> dict[str, Any]:
        index = self._ranks[rank]
        each = {name: amount / self._ranks.count(index) for name, amount in self._bundles[index].items()}
        return {
            "num_cpus": each["CPU"],
            "num_gpus": int("GPU" in each and each["GPU"] > 0),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, index),
            "runtime_env": {"env_vars": {**_NICENESS, **self._environment}},
        }

    def server_options(self, index: int, gpus: int) -> dict[str, Any]:
        """Options of the actor of a server's process on node `index`; the CPUs are for ranks."""
        strategy = PlacementGroupSchedulingStrategy(self._group, index)
        return {
            "num_cpus": 0,
            "num_gpus": gpus,
            "scheduling_strategy": strategy,
            "runtime_env": {"env_vars": _NICENESS},
        }

    def node(self, rank: int) -> str:
        return f"node {self.address_of(self._ranks[rank])}"

    def address_of(self, index: int) -> str:
        """The address of node `index`."""
        return self._chosen[index].address

    def has_left(self, rank: int) -> bool:
        return self.node_has_left(self._ranks[rank])

    def node_has_left(self, index: int) -> bool:
        """Whether node `index` is no longer in the cluster."""
        node = self._chosen[index]
        # Ray gives a node up long after it has closed its port.
        known = any(one["Alive"] and one["NodeID"] == node.id for one in ray.nodes())
        return not (known and _answers(f"{node.address}:{node.port}"))

    def stop(self) -> None:
        # The placement group ends with the job, and its actors with it.
        ray.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _join(address: str) -> None:
    """Become a driver of the cluster. Raises RlcoreError where this process or its Ray does not fit in."""
    # `ray start` asks for the token that a machine has; `ray.init` does not send it to a given address.
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        connect(address)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        reason = str(error).strip().splitlines()[0]
        remedy = "run it on a node of the cluster, or from elsewhere by ray job submit (docs/cluster.md)"
        raise fail(
            "cluster.address", f"the Ray cluster at {address} cannot be joined: {reason}", remedy
        ) from error


def _node(record: Mapping[str, Any]) -> Node:
    has = record["Resources"]
    return Node(
        id=record["NodeID"],
        address=record["NodeManagerAddress"],
        port=record["NodeManagerPort"],
        gpus=int(has.get("GPU", 0)),
        cpus=int(has.get("CPU", 0)),
    )


def _order(node: Node, hosts: Sequence[str]) -> tuple[int, list[int], str]:
    """By place among `hosts`, then by address as a number, then by id."""
    place = hosts.index(node.address) if node.address in hosts else len(hosts)
    try:
        number = list(ipaddress.ip_address(node.address).packed)
    except ValueError:
        number = []
    return place, number, node.id


def _free() -> dict[str, float]:
    free = ray.available_resources()
    return {name: free.get(name, 0.0) for name in ("CPU", "GPU")}
