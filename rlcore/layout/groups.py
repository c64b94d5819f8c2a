"""Which ranks form each process group, in Megatron's order: tp next to each other, then cp, ep, dp, and pp."""

from collections.abc import Sequence

from rlcore.layout.plan import Layout

_SHOWN = 3


def groups(layout: Layout) -> dict[str, list[range]]:
    """Return the groups of each kind; a group is a range of ranks, as its ranks stand equally far apart.

    `ep`, `etp` and `edp` are those of experts, which are split and copied on their own.
    """
    ranks, dp, edp = layout.world_size, layout.dp, layout.expert_dp
    kinds = {
        **_nested(ranks, {"tp": layout.tp, "cp": layout.cp, "dp": dp, "pp": layout.pp}),
        **_nested(ranks, {"etp": layout.etp, "ep": layout.ep, "edp": edp}),
    }
    return kinds if layout.ep > 1 else {kind: kinds[kind] for kind in ("tp", "cp", "dp", "pp")}


def _nested(ranks: int, sizes: dict[str, int]) -> dict[str, list[range]]:
    """Groups along each axis of ranks that are numbered with the first axis running fastest."""
    kinds, stride = {}, 1
    for kind, size in sizes.items():
        first = [rank for rank in range(ranks) if rank // stride % size == 0]
        kinds[kind] = [range(rank, rank + size * stride, stride) for rank in first]
        stride *= size
    return kinds


def in_words(groups: Sequence[range]) -> str:
    """Describe groups of one kind, however many: `256 of 2 ranks: 0-1, 2-3, 4-5 … 510-511`."""
    shown = ", ".join(map(_ranks, groups[:_SHOWN]))
    last = f" … {_ranks(groups[-1])}" if len(groups) > _SHOWN else ""
    return f"{len(groups)} of {len(groups[0])} ranks: {shown}{last}"


def _ranks(group: range) -> str:
    if group.step == 1 or len(group) == 1:
        return f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0])
    if len(group) <= _SHOWN:
        return "+".join(map(str, group))
    return f"{group[0]}+{group[1]}+…+{group[-1]}"
