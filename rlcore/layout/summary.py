"""A layout in words and as a record: ranks, stages with their layers and cost, process groups."""

from collections.abc import Sequence
from typing import Any

from rlcore.config.schema import Parallel
from rlcore.layout.balance import Balanced
from rlcore.layout.groups import groups, in_words
from rlcore.layout.model import Placed
from rlcore.layout.nearest import changes
from rlcore.layout.plan import Layout

Facts = list[tuple[str, str]]


def layout_facts(placed: Placed, length: int) -> Facts:
    """Name the model, the ranks, and each stage; costs are those of sequences of `length` tokens."""
    spec, layout = placed.spec, placed.layout
    size = f"{len(spec.layers)} layers, {spec.parameters / 1e9:.3g} billion parameters"
    sizes = f"tp {layout.tp} × pp {layout.pp} × cp {layout.cp} × dp {layout.dp}"
    facts = [("model", f"{spec.model_type}, {size}"), ("ranks", f"{layout.world_size} = {sizes}")]
    if layout.ep > 1:
        facts.append(("experts", f"ep {layout.ep} × etp {layout.etp} × dp {layout.expert_dp}"))
    costs = placed.relative_costs(length)
    return facts + [(f"stage {rank}", _stage(placed, rank, costs[rank])) for rank in range(layout.pp)]


def _stage(placed: Placed, rank: int, cost: float) -> str:
    """What a pipeline rank holds: `layers 0-1 | 4-5: 4 dense, 0.94 of the mean cost`."""
    layout = placed.layout
    layers = " | ".join(_span(chunk) for chunk in layout.stages[rank])
    kinds = [f"{count} {kind}" for kind, count in placed.kinds(rank).items()]
    parts = [
        *(["embedding"] if rank == 0 else []),
        *kinds,
        *(["MTP"] if rank == layout.mtp_rank else []),
        *(["output layer"] if rank == layout.pp - 1 else []),
    ]
    share = f", {cost:.2f} of the mean cost" if layout.pp > 1 else ""
    return f"layers {layers}: {' + '.join(parts)}{share}"


def _span(layers: tuple[int, ...]) -> str:
    if not layers:
        return "none"
    return f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else str(layers[0])


def group_facts(layout: Layout) -> Facts:
    """Say which ranks form the groups of each kind that has more than one rank."""
    return [(kind, in_words(found)) for kind, found in groups(layout).items() if len(found[0]) > 1]


def nearest_facts(asked: Parallel, found: Sequence[Parallel]) -> Facts:
    """Say of each layout how to get there from the one asked for."""
    names = ("tp", "pp", "cp", "ep")
    return [
        (" × ".join(f"{name} {getattr(one, name)}" for name in names), " ".join(changes(asked, one)))
        for one in found
    ]


def balanced_facts(asked: Parallel, found: Sequence[Balanced]) -> Facts:
    """Say of each layout what its dearest stage costs, and how to get there from the one asked for."""
    return [
        (f"{one.dearest:.2f} of the mean cost", " ".join(changes(asked, one.parallel)) or "as it is")
        for one in found
    ]


def record(placed: Placed, length: int) -> dict[str, Any]:
    """The stages and groups as data, ranks one by one."""
    layout, costs = placed.layout, placed.relative_costs(length)
    return {
        "stages": [
            {"rank": rank, "chunks": chunks, "layers": placed.kinds(rank), "relative_cost": costs[rank]}
            for rank, chunks in enumerate(layout.stages)
        ],
        "groups": {kind: [list(group) for group in found] for kind, found in groups(layout).items()},
    }
