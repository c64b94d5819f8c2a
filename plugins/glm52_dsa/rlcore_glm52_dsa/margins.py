"""How near indexers came to a tie when they chose keys: where two scores differ by less than rounding, two
correct computations may choose differently, and their results cannot be compared.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from rlcore_glm52_dsa.attention import SparseLatentAttention


@contextmanager
def selection_margins() -> Iterator[list[float]]:
    """Collect one number for each choice of keys inside the context, over all queries that had to choose.

    It is the smallest difference of scores between the last key chosen and the first one left out, relative to
    the largest score. One process only: the keys must all be there.
    """
    from rlcore_glm52_dsa.attention import SparseLatentAttention

    found: list[float] = []
    choose = SparseLatentAttention._select

    def select(self: "SparseLatentAttention", *args: Any) -> "Tensor":
        *scored, tokens = args
        found.extend(_margins(*scored, tokens.position_s, self.topk))
        return choose(self, *args)

    SparseLatentAttention._select = select
    try:
        yield found
    finally:
        SparseLatentAttention._select = choose


def _margins(
    query_tid: "Tensor", key_Td: "Tensor", weight_ti: "Tensor", position_t: "Tensor", topk: int
) -> Iterator[float]:
    """The margin, if any query sees more than `topk` keys; sequences start where positions are 0."""
    import torch

    if position_t.max() < topk:
        return
    score_tT = torch.einsum("ti,tiT->tT", weight_ti.double(), (query_tid.double() @ key_Td.double().T).relu())
    place_t = torch.arange(len(position_t))
    hidden_tT = (place_t > place_t[:, None]) | (place_t < (place_t - position_t)[:, None])
    ranked_tT = score_tT.masked_fill(hidden_tT, -torch.inf).sort(descending=True).values
    choosing = position_t >= topk
    gap_t = (ranked_tT[:, topk - 1] - ranked_tT[:, topk])[choosing]
    yield float(gap_t.min() / score_tT[~hidden_tT].abs().max())
