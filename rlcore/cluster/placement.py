"""Every process of a run before any is started: role, node, GPUs, ports, command line and environment.

Who goes where is arithmetic (`rlcore.layout.seats`), how a server starts `rlcore.rollout.sglang.arguments`'s.
Nothing here imports torch or ray, so that a plan for many nodes is made on a laptop.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlcore.cluster.environment import worker_environment
from rlcore.config.schema import Recipe
from rlcore.config.sglang_arguments import Arguments
from rlcore.layout.plan import Layout
from rlcore.layout.seats import NODE_GPUS, Seat, coordinates, server_seats, trainer_seats
from rlcore.layout.server_environment import server_environment
from rlcore.layout.servers import Servers, servers_of
from rlcore.rollout.sglang.arguments import Command, ServerPlace, router_command, server_command

# Below what systems hand out by themselves (32768 and up) and above Ray's workers (to 19999).
FIRST_PORT = 20000
# A server's block: HTTP, the meeting of prefill and decode servers, NCCL; and 10 and up where its nodes meet.
PORTS_OF_SERVER = 200
ROUTER_PORT = 30000
# Of a Ray placement group: every bundle on a node of its own.
STRATEGY = "STRICT_SPREAD"


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process. `position` says where it stands among its like; a trainer rank's words are Ray's to find.

    `reserved_gpus` are those that it has for itself: none where it shares the trainer's. Servers and routers
    have a `model`, by the name that server groups give it.
    """

    role: str
    name: str
    node: int
    host: str
    model: str = ""
    gpus: tuple[int, ...] = ()
    reserved_gpus: int = 0
    position: Mapping[str, int] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Of a server or router."""
        return f"http://{self.host}:{self.ports['http']}"

    @property
    def own_ports(self) -> tuple[int, ...]:
        """Those that this process listens on; the first process of a server has all that its others use."""
        follows = self.position.get("node_rank", 0) > 0
        return (self.ports["http"],) if follows else tuple(self.ports.values())


def as_planned(port: int) -> int:
    """Take the port that a plan shows."""
    return port


@dataclass(frozen=True)
class Placement:
    """All processes of a run; `bundles` are the Ray placement group's, one for each node in order."""

    processes: tuple[Process, ...]
    bundles: tuple[Mapping[str, float], ...]
    strategy: str

    def of(self, role: str) -> list[Process]:
        return [one for one in self.processes if one.role == role]


def place(
    recipe: Recipe,
    layout: Layout,
    known: Arguments,
    *,
    hosts: Sequence[str] = (),
    node_gpus: int = NODE_GPUS,
    threads: int = 1,
    port: Callable[[int], int] = as_planned,
) -> Placement:
    """Place a recipe that breaks no rule, for servers that take the `known` arguments.

    `hosts` are the nodes' addresses in order; those left out are called node0, node1 and so on. A rank has
    `threads` unless the recipe says how many; `port` may put another in the place of a planned one.
    """
    builder = _Builder(recipe, layout, known, hosts, node_gpus, port)
    processes = (*builder.controller(), *builder.routers(), *builder.trainers(), *builder.servers)
    return Placement(processes, _bundles(processes, recipe.train.threads or threads), STRATEGY)


class _Builder:
    """Makes the processes of one recipe; servers first, as the environment of all names every node."""

    def __init__(
        self,
        recipe: Recipe,
        layout: Layout,
        known: Arguments,
        hosts: Sequence[str],
        node_gpus: int,
        port: Callable[[int], int],
    ) -> None:
        self._recipe, self._layout, self._known, self._hosts = recipe, layout, known, hosts
        self._port = port
        self._groups = servers_of(recipe)
        self._seats = self._server_seats(node_gpus)
        seats = [*trainer_seats(recipe, layout.world_size), *(s for g in self._seats for one in g for s in one)]
        addresses = [self._host(node) for node in range(max(seat.node for seat in seats) + 1)]
        self._environment = worker_environment(recipe.cluster.env, addresses, os.environ)
        self._used: dict[int, int] = defaultdict(int)
        self.servers = tuple(self._all_servers())

    def controller(self) -> Iterator[Process]:
        yield Process(role="controller", name="controller", node=0, host=self._host(0))

    def trainers(self) -> Iterator[Process]:
        for rank, seat in enumerate(trainer_seats(self._recipe, self._layout.world_size)):
            yield Process(
                role="trainer",
                name=f"trainer rank {rank}",
                node=seat.node,
                host=self._host(seat.node),
                gpus=seat.gpus,
                reserved_gpus=len(seat.gpus),
                position={"rank": rank, **coordinates(self._layout, rank)},
                environment=self._environment,
            )

    def routers(self) -> Iterator[Process]:
        """One for each model with several servers to choose from."""
        models: dict[str, list[Process]] = defaultdict(list)
        for one in self.servers:
            if not one.position["node_rank"]:
                models[one.model].append(one)
        for index, (model, servers) in enumerate(models.items()):
            if self._recipe.rollout.sglang.router and len(servers) > 1:
                yield self._router(model, servers, ServerPlace(self._host(0), self._port(ROUTER_PORT + index)))

    def _router(self, model: str, servers: list[Process], place: ServerPlace) -> Process:
        roles = {one.name: self._groups[one.position["group"]].role for one in servers}
        prefill = {one.url: one.ports["bootstrap"] for one in servers if roles[one.name] == "prefill"}
        workers = [one.url for one in servers if roles[one.name] != "prefill"]
        command = router_command(self._recipe, workers, place, prefill)
        name = f"router of {model}"
        ports = {"http": place.port}
        return Process(
            role="router", name=name, node=0, host=place.host, model=model, ports=ports,
            command=command.words, environment=command.environment,
        )  # fmt: skip

    def _server_seats(self, node_gpus: int) -> list[list[tuple[Seat, ...]]]:
        recipe = self._recipe
        if recipe.cluster.gpus_per_node:
            return server_seats(recipe, self._groups, node_gpus)
        # On a CPU a server is a process, and a GPU asked for counts as one.
        return [
            [(Seat(index % recipe.cluster.nodes),) for index in range(group.gpus)] for group in self._groups
        ]

    def _all_servers(self) -> Iterator[Process]:
        for number, (group, servers) in enumerate(zip(self._groups, self._seats, strict=True)):
            if group.role == "placeholder":
                continue
            for engine, seats in enumerate(servers):
                yield from self._server(number, group, engine, seats)

    def _server(self, number: int, group: Servers, engine: int, seats: Sequence[Seat]) -> Iterator[Process]:
        """The processes of one server, one on each of its nodes; they meet at the first."""
        first = seats[0].node
        base = FIRST_PORT + PORTS_OF_SERVER * max(self._used[seat.node] for seat in seats)
        ports = _ports(self._port(base), group.role, len(seats), on_gpus=bool(seats[0].gpus))
        for seat in seats:
            self._used[seat.node] += 1
        for node_rank, seat in enumerate(seats):
            arguments = self._arguments(group, ports, len(seats), node_rank, self._host(first))
            # Servers of equal seeds would answer the same prompt with the same response.
            arguments["random_seed"] = self._recipe.seed + sum(map(len, self._seats[:number])) + engine
            command = self._command(group, seat, ports, arguments)
            part = f", node {node_rank + 1} of {len(seats)}" if len(seats) > 1 else ""
            yield Process(
                role="server",
                name=f"{group.model} {group.role} {engine}{part}",
                node=seat.node,
                host=self._host(seat.node),
                model=group.model,
                gpus=seat.gpus,
                reserved_gpus=0 if self._recipe.cluster.colocate else len(seat.gpus),
                position={"group": number, "engine": engine, "node_rank": node_rank},
                ports=ports,
                command=command.words,
                environment=self._server_environment(command, seat),
            )

    def _command(
        self, group: Servers, seat: Seat, ports: Mapping[str, int], arguments: Mapping[str, Any]
    ) -> Command:
        gpus = group.gpus_per_server if seat.gpus else 0
        place = ServerPlace(self._host(seat.node), ports["http"], gpus, arguments)
        return server_command(self._recipe, group.checkpoint, place, self._known, group.overrides)

    def _arguments(
        self, group: Servers, ports: Mapping[str, int], nodes: int, node_rank: int, first: str
    ) -> dict[str, Any]:
        """What follows from where a server stands."""
        found: dict[str, Any] = {}
        if self._recipe.cluster.gpus_per_node:
            found |= {"tp_size": group.tp, "nccl_port": ports["nccl"]}
        if nodes > 1:
            found |= {"nnodes": nodes, "node_rank": node_rank, "dist_init_addr": f"{first}:{ports['meeting']}"}
        if group.role in ("prefill", "decode"):
            found["disaggregation_mode"] = group.role
        if group.role == "prefill":
            found["disaggregation_bootstrap_port"] = ports["bootstrap"]
        return found

    def _server_environment(self, command: Command, seat: Seat) -> dict[str, str]:
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, seat.gpus))} if seat.gpus else {}
        asked = server_environment(self._recipe, self._groups)
        return {**command.environment, **self._environment, **asked, **visible}

    def _host(self, node: int) -> str:
        return self._hosts[node] if node < len(self._hosts) else f"node{node}"


def _ports(base: int, role: str, nodes: int, *, on_gpus: bool) -> dict[str, int]:
    """The ports of a server whose block begins with `base`."""
    bootstrap = {"bootstrap": base + 1} if role == "prefill" else {}
    nccl = {"nccl": base + 2} if on_gpus else {}
    meeting = {"meeting": base + 10} if nodes > 1 else {}
    return {"http": base, **bootstrap, **nccl, **meeting}


def _bundles(processes: Sequence[Process], threads: int) -> tuple[Mapping[str, float], ...]:
    """What each node gives: GPUs, and processor cores for its ranks; who starts servers needs none."""
    bundles = []
    for node in range(max(one.node for one in processes) + 1):
        here = [one for one in processes if one.node == node]
        gpus = {gpu for one in here for gpu in one.gpus}
        cores = max(1, threads * sum(one.role == "trainer" for one in here))
        bundles.append({"CPU": float(cores), **({"GPU": float(len(gpus))} if gpus else {})})
    return tuple(bundles)
