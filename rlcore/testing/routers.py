"""How near routers come to a tie when they choose experts: where two scores differ by less than rounding, two
correct computations may choose differently, and their results cannot be compared.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def choice_margins() -> Iterator[list[float]]:
    """Collect one number for each call of a Megatron router inside the context, over all of its tokens.

    It is the smallest difference of scores, sigmoids plus biases, between the last expert chosen and the first
    one left out. Groups of experts are not looked at.
    """
    from megatron.core.transformer.moe.router import TopKRouter

    found: list[float] = []
    route = TopKRouter.routing

    def routing(router: "nn.Module", logits: "Tensor", **kwargs: Any) -> Any:
        scores = (logits.detach().float().sigmoid() + router.expert_bias).flatten(0, -2)
        ranked = scores.sort(descending=True).values
        if router.topk < ranked.shape[1]:
            found.append(float((ranked[:, router.topk - 1] - ranked[:, router.topk]).min()))
        return route(router, logits, **kwargs)

    TopKRouter.routing = routing
    try:
        yield found
    finally:
        TopKRouter.routing = route
