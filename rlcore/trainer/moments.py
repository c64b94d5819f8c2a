"""What an optimizer knows of its parameters, for checkpoints: master weights and moments by parameter's names.

Data-parallel ranks own runs of them, cut without regard to where parameters end. Megatron puts all of them
together in the host memory of every rank, 12 bytes a parameter, and takes neighbours' numbers for a parameter's
where gradients come in several buckets with padding between them. Here one parameter at a time comes together,
and a rank keeps what it writes.
"""

from collections import ChainMap
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedBase, ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor, nn

# As Megatron's format `fully_reshardable` has them.
KINDS = ("param", "exp_avg", "exp_avg_sq")


class Moments:
    """The states of one optimizer. `sharded` describes them by the number of their parameter and their kind.

    They are like the parameters that `weights` describe, but float32, and zeros until they are filled. Zeros
    take memory only where something is written to them.
    """

    def __init__(self, optimizer: DistributedOptimizer, weights: Mapping[str, Any]) -> None:
        self._optimizer = optimizer
        described = {
            base.data: base for base in nested_values(extract_sharded_tensors_and_factories(weights)[0])
        }
        parameters = [parameter for buffer in optimizer.buffers for parameter in buffer.param_index_map]
        self._host = {parameter: [_zeros_like(parameter) for _ in KINDS] for parameter in parameters}
        self.sharded = {
            number: {
                kind: _like(described[parameter], kind, data)
                for kind, data in zip(KINDS, self._host[parameter], strict=True)
            }
            for number, parameter in enumerate(parameters)
        }

    @property
    def storages(self) -> set[int]:
        """Addresses of the host memory of all states."""
        return {address(data) for kept in self._host.values() for data in kept}

    @torch.no_grad()
    def fill(self, storages: Set[int]) -> None:
        """Read the states whose host memory begins at one of these addresses; others stay as they are.

        All data-parallel ranks take part. Moments that no step has made yet are zeros.
        """
        if self._optimizer.init_state_fn:
            self._optimizer.init_state_fn(self._optimizer.optimizer, self._optimizer.config)
        own = ChainMap(*(bucket["param_map"] for bucket in _buckets(self._optimizer)))
        for parameter, kept in self._host.items():
            states_kn = self._whole(parameter, own[parameter]["param"] if parameter in own else None)
            for data, state_n in zip(kept, states_kn, strict=True):
                if address(data) in storages:
                    data.copy_(state_n.view(data.shape))

    def _whole(self, parameter: nn.Parameter, run: Any) -> Tensor:
        """All kinds of states of a parameter, [k, n], of which this rank owns `run`."""
        states_kn = torch.zeros(len(KINDS), parameter.numel(), device=parameter.device)
        if run is not None:
            own = self._optimizer._get_main_param_and_optimizer_states(parameter)
            for state_n, kind in zip(states_kn, KINDS, strict=True):
                state_n[run.start : run.end] = own[kind].flatten()
        if self._optimizer.data_parallel_group.size() > 1:
            dist.all_reduce(states_kn, group=self._optimizer.data_parallel_group)
        return states_kn


def address(tensor: Tensor) -> int:
    """Where the memory begins that a tensor is in, or a view of."""
    return tensor.untyped_storage().data_ptr()


def _zeros_like(parameter: nn.Parameter) -> Tensor:
    """Zeros in host memory, which numpy, unlike torch, leaves to the system until they are written to."""
    return torch.from_numpy(np.zeros(tuple(parameter.shape), np.float32))


def _like(weight: ShardedBase, kind: str, data: Tensor) -> ShardedTensor | ShardedTensorFactory:
    dtype = {} if isinstance(weight, ShardedTensorFactory) else {"dtype": data.dtype}
    return replace(weight, key=f"optimizer.state.{kind}.{weight.key}", data=data, **dtype)


def _buckets(optimizer: DistributedOptimizer) -> list[Mapping[str, Any]]:
    return [bucket for by_type in optimizer.gbuf_ranges for buckets in by_type.values() for bucket in buckets]
