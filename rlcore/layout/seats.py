"""Which node and which of its GPUs every trainer rank and every server has: arithmetic on numbered nodes.

Trainer ranks fill nodes in order, so that tp, whose ranks are neighbours, stays inside a node. Servers share
the trainer's GPUs where colocated; else they have what training leaves free, and further nodes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlcore.config.checks import located
from rlcore.config.load import LoadedRecipe
from rlcore.config.schema import Recipe
from rlcore.errors import Problem, RlcoreError
from rlcore.layout.plan import Layout, world_size
from rlcore.layout.servers import Servers, servers_of

# Of the machines that the published recipes are for. Who has met the nodes says what they have.
NODE_GPUS = 8


@dataclass(frozen=True)
class Seat:
    """A node, counted from 0, and GPUs of it, counted from 0; none on a CPU."""

    node: int
    gpus: tuple[int, ...] = ()


def trainer_seats(recipe: Recipe, ranks: int) -> list[Seat]:
    """Return the seat of each rank."""
    each, on_gpus = _ranks_per_node(recipe, ranks), recipe.cluster.gpus_per_node > 0
    return [Seat(rank // each, (rank % each,) if on_gpus else ()) for rank in range(ranks)]


def coordinates(layout: Layout, rank: int) -> dict[str, int]:
    """Return where a rank stands on each axis, those of experts included where these are spread."""
    dense = {"tp": layout.tp, "cp": layout.cp, "dp": layout.dp, "pp": layout.pp}
    experts = {"etp": layout.etp, "ep": layout.ep, "edp": layout.expert_dp}
    return {**_digits(rank, dense), **(_digits(rank, experts) if layout.ep > 1 else {})}


def server_seats(
    recipe: Recipe, groups: Sequence[Servers], node_gpus: int = NODE_GPUS
) -> list[list[tuple[Seat, ...]]]:
    """Return, for each group and each of its servers, the nodes that it spans. Nodes have `node_gpus` GPUs.

    Raises RlcoreError for a server that no node, nor several whole ones, can hold.
    """
    free = _Free(recipe, node_gpus)
    found: list[list[tuple[Seat, ...]]] = [[] for _ in groups]
    # Those that need whole nodes come first.
    for index in sorted(range(len(groups)), key=lambda index: -groups[index].gpus_per_server):
        found[index] = [free.take(groups[index]) for _ in range(groups[index].count)]
    return found


def check_seats(loaded: LoadedRecipe) -> list[Problem]:
    """Return what keeps ranks and servers from having seats; places are files and lines.

    Empty where the keys that say it were refused.
    """
    if any(map(loaded.is_broken, ("rollout", "cluster", "parallel"))):
        return []
    found = list(_split_tp(loaded.recipe))
    try:
        if loaded.recipe.cluster.gpus_per_node:
            server_seats(loaded.recipe, servers_of(loaded.recipe))
    except RlcoreError as error:
        found += error.problems
    return [located(loaded, problem) for problem in found]


class _Free:
    """GPUs that no server has yet, node by node; and as many further nodes as it takes, unless colocated."""

    def __init__(self, recipe: Recipe, node_gpus: int) -> None:
        cluster = recipe.cluster
        self._first = 0 if cluster.colocate else cluster.gpus_per_node
        self._size = cluster.gpus_per_node if cluster.colocate else max(node_gpus, cluster.gpus_per_node)
        self._free = {node: list(range(self._first, self._size)) for node in range(cluster.nodes)}
        self._may_grow = not cluster.colocate

    def take(self, group: Servers) -> tuple[Seat, ...]:
        gpus = group.gpus_per_server
        # A server that is larger than a node has whole ones.
        nodes, each = (1, gpus) if gpus <= self._size else (gpus // self._size, self._size)
        found: list[int] = []
        if nodes * each == gpus:
            found = [node for node, free in self._free.items() if len(free) >= each][:nodes]
            while self._may_grow and len(found) < nodes:
                found.append(len(self._free))
                self._free[found[-1]] = list(range(self._size))
        if len(found) < nodes or not found:
            raise RlcoreError(self._unfit(group))
        return tuple(Seat(node, tuple(self._free[node].pop(0) for _ in range(each))) for node in found)

    def _unfit(self, group: Servers) -> Problem:
        gpus, size = group.gpus_per_server, self._size
        message = f"a server of {gpus} GPUs fits neither into what is left of a node of {size} nor whole ones"
        return Problem(group.size_key, message, f"a divisor or a multiple of {size}")


def _ranks_per_node(recipe: Recipe, ranks: int) -> int:
    return recipe.cluster.gpus_per_node or -(-ranks // recipe.cluster.nodes)


def _split_tp(recipe: Recipe) -> Iterator[Problem]:
    each, tp = _ranks_per_node(recipe, world_size(recipe)), recipe.parallel.tp
    if recipe.cluster.nodes > 1 and each % tp:
        message = f"{tp} ranks that talk all the time are not inside nodes of {each} ranks"
        yield Problem("parallel.tp", message, f"a divisor of {each}")


def _digits(number: int, sizes: dict[str, int]) -> dict[str, int]:
    """A number in mixed radix, the first axis running fastest."""
    found = {}
    for axis, size in sizes.items():
        number, found[axis] = divmod(number, size)
    return found
