"""The processes of a run in words: a few facts, every process with its command, or records."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlcore.cluster.placement import Placement, Process
    from rlcore.config.load import LoadedRecipe
    from rlcore.layout.model import Placed


def planned(loaded: "LoadedRecipe", placed: "Placed | None") -> "Placement | None":
    """Place a recipe's processes; None where something that other checks report is in the way."""
    from rlcore.cluster.hostfile import read_hostfile
    from rlcore.cluster.placement import place
    from rlcore.config.sglang_arguments import serving_arguments
    from rlcore.errors import RlcoreError

    if placed is None or any(map(loaded.is_broken, ("rollout", "cluster"))):
        return None
    recipe = loaded.recipe
    try:
        known = serving_arguments(recipe.rollout.sglang.python)
        hosts = read_hostfile(recipe.cluster.hostfile) if recipe.cluster.hostfile else []
        return place(recipe, placed.layout, known, hosts=[host.address for host in hosts])
    except RlcoreError:
        return None


def process_facts(placement: "Placement") -> list[tuple[str, str]]:
    """Say how many processes of each kind there are, and where."""
    single = [*placement.of("controller"), *placement.of("router")]
    trainers, servers = placement.of("trainer"), placement.of("server")
    nodes = len({one.node for one in trainers})
    each = f", {-(-len(trainers) // nodes)} on each of {nodes} nodes" if nodes > 1 else ""
    return [
        *((one.name, f"on {one.host}{_ports(one)}") for one in single),
        ("trainer ranks", f"{len(trainers)}{each}"),
        *(_server_fact(list(parts)) for _, parts in groupby(servers, key=_server)),
        ("Ray bundles", f"{_bundles(placement)}, {placement.strategy}"),
    ]


def process_lines(placement: "Placement") -> Iterator[str]:
    """Every process: where it is, what it has, and how it is started."""
    shared = placement.of("trainer")[0].environment
    yield f"environment of trainer ranks: {_assignments(shared) or 'as it is'}"
    for one in placement.processes:
        gpus = f", GPU {','.join(map(str, one.gpus))}" if one.gpus else ""
        position = "".join(f" {axis} {index}" for axis, index in one.position.items())
        yield f"{one.name}: {one.host}{gpus}{_ports(one)}{',' * bool(position)}{position}"
        if one.command:
            yield "    " + " ".join(filter(None, (_assignments(one.environment), shlex.join(one.command))))
    yield f"Ray placement group, {placement.strategy}:"
    for node, bundle in enumerate(placement.bundles):
        yield f"  bundle {node}: {_resources(bundle)}"


def process_records(placement: "Placement") -> dict[str, Any]:
    """The processes and the Ray placement group as data."""
    group = {"strategy": placement.strategy, "bundles": [dict(bundle) for bundle in placement.bundles]}
    return {"processes": [asdict(one) for one in placement.processes], "placement_group": group}


def _server(process: "Process") -> tuple[int, int]:
    return process.position["group"], process.position["engine"]


def _server_fact(parts: "Sequence[Process]") -> tuple[str, str]:
    first, last = parts[0], parts[-1]
    where = first.host if len(parts) == 1 else f"{first.host} … {last.host}, {len(parts)} nodes"
    gpus = f", GPU {','.join(map(str, first.gpus))}" if first.gpus else ""
    return first.name.partition(",")[0], f"on {where}{gpus}{_ports(first)}"


def _ports(process: "Process") -> str:
    named = ", ".join(f"{name} {port}" for name, port in process.ports.items())
    return f", ports: {named}" if named else ""


def _bundles(placement: "Placement") -> str:
    """Equal bundles next to each other, once: `2 × CPU 8, GPU 8`."""
    runs = [(words, len(list(same))) for words, same in groupby(map(_resources, placement.bundles))]
    return " + ".join(f"{count} × ({words})" for words, count in runs)


def _resources(bundle: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in bundle.items())


def _assignments(environment: Mapping[str, str]) -> str:
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
