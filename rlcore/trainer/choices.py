"""Which experts each token took, read from the routers of either model while it runs.

Two correct computations choose differently where two experts' scores differ by less than rounding; from there
on their results cannot be compared.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor, nn


@contextmanager
def recorded_choices(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what each router chooses that runs inside the context: experts in rising order, int64 [t, k].

    Megatron's routers give a map of tokens and experts, those of transformers indices.
    """
    found: list[Tensor] = []

    def record(router: nn.Module, inputs: Any, outputs: Sequence[Tensor]) -> None:
        chosen = outputs[-1]
        is_map = chosen.dtype == torch.bool
        found.append(chosen.nonzero()[:, 1].view(len(chosen), -1) if is_map else chosen.sort(-1).values)

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, TopKRouter) or hasattr(module, "e_score_correction_bias"):
                hooks.callback(module.register_forward_hook(record).remove)
        yield found


def joined(choices: Sequence[Tensor], tokens: int) -> Tensor:
    """Join what each layer's router chose for the same tokens: [t, layers × k], [t, 0] without routers."""
    return torch.cat(list(choices), 1).cpu() if choices else torch.empty(tokens, 0, dtype=torch.long)


def before_first_difference(a_tk: Tensor, b_tk: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mark the tokens up to which nothing in their sequence chose differently, bool [t]."""
    same_t = (a_tk == b_tk).all(-1)
    return torch.cat([part.cumprod(0) for part in same_t.split(list(lengths))]).bool()
