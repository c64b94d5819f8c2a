"""How evenly a step's tokens were shared out among experts, from the counts that Megatron's routers keep.

Routers with a correction bias count what they choose, for that bias to move by; others count nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe.router import TopKRouter
from torch import nn

from rlcore.ranks import from_all_ranks


@dataclass(frozen=True)
class Load:
    """Tokens of one layer's experts: of the least and the most loaded, on average, and how many got none."""

    least: float
    most: float
    mean: float
    unused: int


def routing_metrics(stages: Sequence[nn.Module]) -> dict[str, float]:
    """Say how tokens were routed since the gradients were zeroed, the same on all ranks; all of them must ask.

    `router/max_load_over_mean` is the most loaded expert's tokens over the mean of its layer, on average over
    layers, and `router/max_load_over_mean_worst` in the worst of them; `router/load_min` and `router/load_max`
    are the fewest and the most tokens of any expert, and `router/unused_experts` counts, over all layers, those
    that got none. Padding and the two tokens of a filler count. Layers that ran without gradients, such as
    frozen MTP layers, do not. Empty without counts.
    """
    loads = {place: load for rank in from_all_ranks(_own_loads(stages)) for place, load in rank.items()}
    if not loads:
        return {}
    ratios = [load.most / load.mean for load in loads.values()]
    return {
        "router/max_load_over_mean": fmean(ratios),
        "router/max_load_over_mean_worst": max(ratios),
        "router/load_min": min(load.least for load in loads.values()),
        "router/load_max": max(load.most for load in loads.values()),
        "router/unused_experts": float(sum(load.unused for load in loads.values())),
    }


def _own_loads(stages: Sequence[nn.Module]) -> dict[tuple[bool, int], Load]:
    """Loads of this rank's layers, over all ranks that have the same ones, by layer."""
    routers = dict(_counting_routers(stages))
    if not routers:
        return {}
    counts_le = torch.stack([router.local_tokens_per_expert for router in routers.values()])
    dist.all_reduce(
        counts_le, group=parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
    )
    rows = zip(routers, counts_le.tolist(), strict=True)
    return {place: Load(min(row), max(row), fmean(row), row.count(0.0)) for place, row in rows if any(row)}


def _counting_routers(stages: Sequence[nn.Module]) -> Iterator[tuple[tuple[bool, int], TopKRouter]]:
    """Routers with counts, by whether they are of an MTP layer and by their layer's number."""
    for stage in stages:
        for name, module in stage.named_modules():
            if isinstance(module, TopKRouter) and module.local_tokens_per_expert is not None:
                yield ("mtp" in name.split("."), module.layer_number), module
