"""How evenly a step's tokens were shared out among experts, and how often correction biases had a say in it.

Routers with such a bias count what they choose; others count nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import nn

from rlcore.models.router import counting_routers
from rlcore.ranks import from_all_ranks


@dataclass(frozen=True)
class Load:
    """Tokens of one layer's experts: of the least and the most loaded, on average, and how many got none.

    `corrected` is the share of them, over all experts, that the correction bias brought.
    """

    least: float
    most: float
    mean: float
    unused: int
    corrected: float


def routing_metrics(stages: Sequence[nn.Module]) -> dict[str, float]:
    """Say how tokens were routed since the gradients were zeroed, the same on all ranks; all of them must ask.

    `router/max_load_over_mean` is the most loaded expert's tokens over the mean of its layer, on average over
    layers, and `router/max_load_over_mean_worst` in the worst of them; `router/load_min` and `router/load_max`
    are the fewest and the most tokens of any expert, and `router/unused_experts` counts, over all layers, those
    that got none. `router/corrected_share` is the share of choices, of one expert by one token, that would not
    have been made without the correction biases. Layers that ran without gradients, such as frozen MTP layers,
    do not count. Empty without counts.
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
        "router/corrected_share": fmean(load.corrected for load in loads.values()),
    }


def _own_loads(stages: Sequence[nn.Module]) -> dict[tuple[bool, int], Load]:
    """Loads of this rank's layers, over all ranks that have the same ones, by layer, those of MTP apart."""
    routers = {
        ("mtp" in name.split("."), router.layer_number): router for name, router in counting_routers(stages)
    }
    if not routers:
        return {}
    counts_l2e = torch.stack(
        [torch.stack([r.local_tokens_per_expert, r.local_corrections]) for r in routers.values()]
    )
    dist.all_reduce(
        counts_l2e, group=parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
    )
    rows = zip(routers, counts_l2e.tolist(), strict=True)
    return {place: _load(*counts) for place, counts in rows if any(counts[0])}


def _load(tokens: Sequence[float], corrections: Sequence[float]) -> Load:
    return Load(
        least=min(tokens),
        most=max(tokens),
        mean=fmean(tokens),
        unused=tokens.count(0.0),
        corrected=sum(corrections) / sum(tokens),
    )
