"""The whole model's gradient from all ranks' shards, by hub names, and how far two of them are apart."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.distributed.param_and_grad_buffer import shard_buffer
from torch import Tensor

from rlcore.bridge.inventory import megatron_tensors, tensor_shard
from rlcore.bridge.table import Entry, WeightBridge
from rlcore.bridge.transforms import Replicated, Shard

Gradients = dict[str, list[Tensor]]


def whole_gradients(stages: Sequence[DistributedDataParallel], bridge: WeightBridge) -> Gradients:
    """Every copy that ranks hold of each parameter's gradient, un-sharded; on rank 0, nothing elsewhere."""
    _undo_reduce_scatter(stages)
    own = _local_gradients(stages)
    gathered = [own] * dist.get_world_size()
    dist.gather_object(own, gathered if dist.get_rank() == 0 else None)
    if dist.get_rank():
        return {}
    parts: dict[str, dict[Shard, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for name, shard, gradient in chain.from_iterable(gathered):
        parts[name][shard].append(gradient)
    return {
        hub_name: tensors
        for name, shards in parts.items()
        for hub_name, tensors in _joined(bridge.by_megatron[name], shards).items()
    }


def _undo_reduce_scatter(stages: Sequence[DistributedDataParallel]) -> None:
    """Give every data-parallel rank the sums that the distributed optimizer left with one of them."""
    for stage in stages:
        for group in (*stage.bucket_groups, *stage.expert_parallel_bucket_groups):
            for bucket in group.buckets:
                rank = group.intra_distributed_optimizer_instance_rank
                shards = shard_buffer(bucket.grad_data, group.intra_distributed_optimizer_instance_size)
                dist.all_gather(
                    shards, shards[rank].clone(), group=group.intra_distributed_optimizer_instance_group
                )


def _local_gradients(stages: Sequence[DistributedDataParallel]) -> list[tuple[str, Shard, Tensor]]:
    policies = [stage.module for stage in stages]
    return [
        (name, tensor_shard(policies[0], name), tensor.main_grad.clone())
        for name, tensor in megatron_tensors(policies).items()
        if isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad
    ]


def _joined(entry: Entry, shards: Mapping[Shard, list[Tensor]]) -> Gradients:
    """Join shards into the checkpoint's tensors, once for every copy that there is of them."""
    if isinstance(entry.transform, Replicated):
        whole = [[gradient] for copies in shards.values() for gradient in copies]
    else:
        whole = list(zip(*(shards[shard] for shard in sorted(shards)), strict=True))
    written = [entry.transform.write(copy) for copy in whole]
    return dict(zip(entry.hf, map(list, zip(*written, strict=True)), strict=True))


def largest_difference(gradients: Gradients, reference: Gradients) -> tuple[float, str]:
    """max |Δg| / max |g| over all parameters and copies, and the parameter that has it."""
    assert gradients.keys() == reference.keys()
    return max(
        (float((copy - reference[name][0]).abs().max() / reference[name][0].abs().max()), name)
        for name, copies in gradients.items()
        for copy in copies
    )
