"""What tests of kernels share, be it in Triton's interpreter or on a GPU: inputs and what is expected."""

from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from rlcore.config.schema import Parallel
from rlcore.models.hf_config import read_hf_config
from rlcore.trainer.parity import Parity, measure_parity
from rlcore.trainer.setup import process_groups
from rlcore_glm52_dsa.bridge import dsa_bridge
from rlcore_glm52_dsa.kernels import functions
from rlcore_glm52_dsa.spec import dsa_spec

Attended = tuple[Tensor, Tensor, Tensor]
CHOICES = ("distinct", "repeated", "without any", "with holes")


def choices(kind: str, queries: int, keys: int, chosen: int) -> Tensor:
    """Places of chosen keys, int32 [queries, chosen]. The first third of queries see few: 1, 2, 3 and so on.

    Beside distinct ones: each named twice; every third query without any; none in the first half, or in every
    third slot after it.
    """
    generator = torch.Generator().manual_seed(0)
    index_tk = torch.rand(queries, keys, generator=generator).argsort(1)[:, :chosen].int()
    slot_k, row_t1 = torch.arange(chosen), torch.arange(queries)[:, None]
    index_tk[(slot_k > row_t1) & (row_t1 < queries // 3)] = -1
    if kind == "repeated":
        index_tk[:, chosen // 2 :] = index_tk[:, : chosen - chosen // 2]
    elif kind == "without any":
        index_tk[::3] = -1
    elif kind == "with holes":
        index_tk[:, (slot_k < chosen // 2) | (slot_k % 3 == 0)] = -1
    return index_tk


def drawn_attention(
    index_tk: Tensor, keys: int, heads: int, widths: tuple[int, int], dtype: torch.dtype
) -> Attended:
    """Queries [t, h, d], keys [T, d] and a gradient [t, h, v] for these choices; `widths` are v and d - v."""
    generator = torch.Generator().manual_seed(1)
    queries, value, width = len(index_tk), widths[0], sum(widths)
    shapes = (queries, heads, width), (keys, width), (queries, heads, value)
    query, key, grad = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return query, key, grad


def attended(
    name: str, query_thd: Tensor, key_Td: Tensor, grad_thv: Tensor, index_tk: Tensor, device: str = "cpu"
) -> Attended:
    """What the functions of this name give: output, and the gradients of queries and keys."""
    query, key = (x.to(device).requires_grad_() for x in (query_thd, key_Td))
    scale = query.shape[-1] ** -0.5
    out = functions(name).attend(query, key, index_tk.to(device), scale, grad_thv.shape[-1])
    out.backward(grad_thv.to(device))
    return out.detach().cpu(), query.grad.cpu(), key.grad.cpu()


def spans(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """First and last place that each query of these packed sequences may choose."""
    last_t = torch.arange(sum(lengths))
    start = torch.tensor([0, *lengths]).cumsum(0)[:-1]
    return start.repeat_interleave(torch.tensor(lengths)), last_t


def whole_numbers(tokens: int, heads: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and weights of an indexer whose scores are whole numbers: exact, and many of them equal."""
    generator = torch.Generator().manual_seed(2)
    shapes = (tokens, heads, width), (tokens, width), (tokens, heads)
    query, key, weight = (torch.randint(-2, 3, shape, generator=generator).to(dtype) for shape in shapes)
    return query, key, weight


def selected_in_tiles(scores: int, *inputs: Tensor, topk: int) -> Tensor:
    """What the kernels select with so many scores at a time."""
    with patch("rlcore_glm52_dsa.kernels.selection._SCORES", scores):
        return functions("triton").select(*inputs, topk)


def best_places(
    query_tid: Tensor, key_Td: Tensor, weight_ti: Tensor, first_t: Tensor, last_t: Tensor, topk: int
) -> Tensor:
    """What selection promises, by sorting all scores: of equals the earlier, places in ascending order."""
    score_tT = torch.einsum("ti,tiT->tT", weight_ti.float(), (query_tid.float() @ key_Td.float().T).relu())
    place_T = torch.arange(len(key_Td), device=key_Td.device)
    score_tT[(place_T < first_t[:, None]) | (place_T > last_t[:, None])] = -torch.inf
    columns = min(topk, int((last_t - first_t).max()) + 1)
    best_tk, place_tk = (x[:, :columns] for x in score_tT.sort(dim=1, descending=True, stable=True))
    none = len(key_Td)
    place_tk = place_tk.masked_fill(best_tk == -torch.inf, none).sort(1).values
    return place_tk.masked_fill(place_tk == none, -1).int()


def parity(checkpoint: Path) -> Parity:
    """How far a model with the kernels is from transformers'."""
    spec = dsa_spec(read_hf_config(checkpoint)).chosen({"kernels": "triton"})
    with process_groups(Parallel(), seed=0):
        return measure_parity(spec, dsa_bridge(spec), checkpoint)
