"""Attention of every query to its own choice of keys, fused in Triton: `sparse.py`'s function for a GPU.

A program serves one query and up to 64 heads, which share the keys that it gathers. A key is one latent: its
first widths (512) are values too, the others (64) are rotated; each part is a tile of its own, as the widths of
tiles are powers of two. Probabilities are computed twice and never stored. Axes as in the reference; r widths
are rotated.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# Kernels compute powers of two.
_LOG2_E = tl.constexpr(1.4426950408889634)


def attend(query_thd: Tensor, key_Td: Tensor, index_tk: Tensor, scale: float, value_width: int) -> Tensor:
    """Softmax attention over chosen keys, whose first `value_width` widths are the values: [t, h, v].

    As the reference has it, for float32 and bfloat16. Sums are float32; probabilities and their gradients are
    rounded to the inputs' dtype before they meet keys. Atomics add up the keys' gradients in float32, in an
    order that differs from run to run.
    """
    return _Attention.apply(
        query_thd.contiguous(), key_Td.contiguous(), index_tk.contiguous(), scale, value_width
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_thd: Tensor, key_Td: Tensor, index_tk: Tensor, scale: float, value_width: int
    ) -> Tensor:
        tokens, heads, _ = query_thd.shape
        out_thv = query_thd.new_empty(tokens, heads, value_width)
        log_sum_th = query_thd.new_empty(tokens, heads, dtype=torch.float32)
        sizes = forward_sizes(query_thd, index_tk, value_width)
        grid = (tokens, triton.cdiv(heads, sizes["HEADS"]))
        forward_kernel[grid](
            query_thd, key_Td, index_tk, out_thv, log_sum_th, scale, heads, index_tk.shape[1], **sizes
        )
        ctx.save_for_backward(query_thd, key_Td, index_tk, out_thv, log_sum_th)
        ctx.scale = scale
        return out_thv

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_thv: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        query_thd, key_Td, index_tk, out_thv, log_sum_th = ctx.saved_tensors
        tokens, heads, value_width = out_thv.shape
        query_grad_thd = torch.empty_like(query_thd)
        key_grad_Td = torch.zeros_like(key_Td, dtype=torch.float32)
        sizes = backward_sizes(query_thd, index_tk, value_width)
        grid = (tokens, triton.cdiv(heads, sizes["HEADS"]))
        backward_kernel[grid](
            query_thd,
            key_Td,
            index_tk,
            out_thv,
            log_sum_th,
            grad_thv.contiguous(),
            query_grad_thd,
            key_grad_Td,
            ctx.scale,
            heads,
            index_tk.shape[1],
            **sizes,
        )
        return query_grad_thd, key_grad_Td.to(key_Td.dtype), None, None, None


def forward_sizes(query_thd: Tensor, index_tk: Tensor, value_width: int) -> dict[str, int]:
    """Sizes of tiles, and options of the launch."""
    heads = _head_tile(query_thd, 64)
    # A head's output takes 2 KiB of a Hopper multiprocessor's 256 KiB of registers: with 64 heads there is room
    # for 32 keys; with fewer for 64, of which each of 8 warps has a column of matrix products.
    keys, stages = (32, 3) if heads == 64 or _is_wide(query_thd) else (64, 2)
    tiles = {"HEADS": heads, "KEYS": keys, "num_stages": stages, "num_warps": 8}
    return {**_widths(query_thd, index_tk, value_width), **tiles}


def backward_sizes(query_thd: Tensor, index_tk: Tensor, value_width: int) -> dict[str, int]:
    """Sizes of tiles, and options of the launch."""
    # Gradients of queries and of keys are in registers, which are full at 32 of each.
    tiles = {"HEADS": _head_tile(query_thd, 32), "KEYS": 16 if _is_wide(query_thd) else 32}
    return {**_widths(query_thd, index_tk, value_width), **tiles, "num_stages": 2, "num_warps": 8}


def _head_tile(query_thd: Tensor, most: int) -> int:
    # Matrix products have at least 16 rows. float32 is there to compare with, not to be fast.
    return 16 if _is_wide(query_thd) else min(most, max(16, triton.next_power_of_2(query_thd.shape[1])))


def _is_wide(x: Tensor) -> bool:
    return x.dtype == torch.float32


def _widths(query_thd: Tensor, index_tk: Tensor, value_width: int) -> dict[str, int]:
    rotated = query_thd.shape[2] - value_width
    return {
        # Kernels are compiled for each power of two, not for each length of a batch's longest sequence.
        "SLOTS": triton.next_power_of_2(index_tk.shape[1]),
        "VALUE": value_width,
        "ROTATED": rotated,
        "VALUE_TILE": max(16, triton.next_power_of_2(value_width)),
        "ROTATED_TILE": max(16, triton.next_power_of_2(rotated)),
    }


@triton.jit
def forward_kernel(
    query: tl.tensor,
    key: tl.tensor,
    index: tl.tensor,
    out: tl.tensor,
    log_sum: tl.tensor,
    scale: float,
    heads: int,
    chosen: int,
    SLOTS: tl.constexpr,
    VALUE: tl.constexpr,
    ROTATED: tl.constexpr,
    VALUE_TILE: tl.constexpr,
    ROTATED_TILE: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """Online softmax. `log_sum` is to base two, and 0 for a query without keys."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    row_h = token * heads + head
    present_h = head < heads
    query_hv, query_hr = _parts(query, row_h, present_h, VALUE, ROTATED, VALUE_TILE, ROTATED_TILE)
    index += token * chosen
    top_h = tl.full([HEADS], float("-inf"), tl.float32)
    sum_h = tl.zeros([HEADS], tl.float32)
    out_hv = tl.zeros([HEADS, VALUE_TILE], tl.float32)
    for start in range(0, _end(index, chosen, SLOTS), KEYS):
        place_k = _places(index, start, chosen, KEYS)
        value_kv, rotated_kr = _parts(key, place_k, place_k >= 0, VALUE, ROTATED, VALUE_TILE, ROTATED_TILE)
        score_hk = _scores(query_hv, query_hr, value_kv, rotated_kr, place_k, scale)
        new_h = tl.maximum(top_h, tl.max(score_hk, 1))
        # Where no key has come yet, any finite number keeps NaN away.
        base_h = tl.where(new_h == float("-inf"), 0.0, new_h)
        p_hk = tl.exp2(score_hk - base_h[:, None])
        shrunk_h = tl.exp2(top_h - base_h)
        sum_h = sum_h * shrunk_h + tl.sum(p_hk, 1)
        out_hv = tl.dot(p_hk.to(value_kv.dtype), value_kv, out_hv * shrunk_h[:, None], input_precision="ieee")
        top_h = new_h
    none_h = sum_h == 0
    sum_h = tl.where(none_h, 1.0, sum_h)
    _store(out, row_h, present_h, out_hv / sum_h[:, None], VALUE, 0, VALUE, VALUE_TILE)
    tl.store(log_sum + row_h, tl.where(none_h, 0.0, top_h + tl.log2(sum_h)), present_h)


@triton.jit
def backward_kernel(
    query: tl.tensor,
    key: tl.tensor,
    index: tl.tensor,
    out: tl.tensor,
    log_sum: tl.tensor,
    grad: tl.tensor,
    query_grad: tl.tensor,
    key_grad: tl.tensor,
    scale: float,
    heads: int,
    chosen: int,
    SLOTS: tl.constexpr,
    VALUE: tl.constexpr,
    ROTATED: tl.constexpr,
    VALUE_TILE: tl.constexpr,
    ROTATED_TILE: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """With p the probabilities: dscore = p · (dout · value - dout · out). Heads add up before the atomics."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    row_h = token * heads + head
    present_h = head < heads
    query_hv, query_hr = _parts(query, row_h, present_h, VALUE, ROTATED, VALUE_TILE, ROTATED_TILE)
    grad_hv = _load(grad, row_h, present_h, VALUE, 0, VALUE, VALUE_TILE)
    out_hv = _load(out, row_h, present_h, VALUE, 0, VALUE, VALUE_TILE)
    mean_h = tl.sum(grad_hv.to(tl.float32) * out_hv.to(tl.float32), 1)
    log_sum_h = tl.load(log_sum + row_h, present_h, 0.0)
    index += token * chosen
    query_grad_hv = tl.zeros([HEADS, VALUE_TILE], tl.float32)
    query_grad_hr = tl.zeros([HEADS, ROTATED_TILE], tl.float32)
    for start in range(0, _end(index, chosen, SLOTS), KEYS):
        place_k = _places(index, start, chosen, KEYS)
        value_kv, rotated_kr = _parts(key, place_k, place_k >= 0, VALUE, ROTATED, VALUE_TILE, ROTATED_TILE)
        score_hk = _scores(query_hv, query_hr, value_kv, rotated_kr, place_k, scale)
        p_hk = tl.exp2(score_hk - log_sum_h[:, None])
        p_grad_hk = tl.dot(grad_hv, tl.trans(value_kv), input_precision="ieee")
        score_grad_hk = (p_hk * (p_grad_hk - mean_h[:, None]) * scale).to(value_kv.dtype)
        query_grad_hv = tl.dot(score_grad_hk, value_kv, query_grad_hv, input_precision="ieee")
        query_grad_hr = tl.dot(score_grad_hk, rotated_kr, query_grad_hr, input_precision="ieee")
        score_grad_kh = tl.trans(score_grad_hk)
        value_grad_kv = tl.dot(score_grad_kh, query_hv, input_precision="ieee")
        value_grad_kv = tl.dot(tl.trans(p_hk.to(grad_hv.dtype)), grad_hv, value_grad_kv, input_precision="ieee")
        rotated_grad_kr = tl.dot(score_grad_kh, query_hr, input_precision="ieee")
        _add(key_grad, place_k, value_grad_kv, VALUE + ROTATED, 0, VALUE, VALUE_TILE)
        _add(key_grad, place_k, rotated_grad_kr, VALUE + ROTATED, VALUE, ROTATED, ROTATED_TILE)
    _store(query_grad, row_h, present_h, query_grad_hv, VALUE + ROTATED, 0, VALUE, VALUE_TILE)
    _store(query_grad, row_h, present_h, query_grad_hr, VALUE + ROTATED, VALUE, ROTATED, ROTATED_TILE)


@triton.jit
def _end(index: tl.tensor, chosen: int, SLOTS: tl.constexpr) -> tl.tensor:
    """One past the last slot that names a key, so that queries early in a sequence cost less."""
    slot = tl.arange(0, SLOTS)
    named = tl.load(index + slot, slot < chosen, -1) >= 0
    return tl.max(tl.where(named, slot + 1, 0), 0)


@triton.jit
def _places(index: tl.tensor, start: int, chosen: int, KEYS: tl.constexpr) -> tl.tensor:
    slot = start + tl.arange(0, KEYS)
    return tl.load(index + slot, slot < chosen, -1).to(tl.int64)


@triton.jit
def _scores(
    query_hv: tl.tensor,
    query_hr: tl.tensor,
    value_kv: tl.tensor,
    rotated_kr: tl.tensor,
    place_k: tl.tensor,
    scale: float,
) -> tl.tensor:
    """Scores in units of ln 2, -inf where no key is named."""
    score_hk = tl.dot(query_hr, tl.trans(rotated_kr), input_precision="ieee")
    score_hk = tl.dot(query_hv, tl.trans(value_kv), score_hk, input_precision="ieee")
    return tl.where((place_k >= 0)[None], score_hk * (scale * _LOG2_E), float("-inf"))


@triton.jit
def _parts(
    pointer: tl.tensor,
    row: tl.tensor,
    present: tl.tensor,
    VALUE: tl.constexpr,
    ROTATED: tl.constexpr,
    VALUE_TILE: tl.constexpr,
    ROTATED_TILE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Both parts of rows of queries or keys."""
    value = _load(pointer, row, present, VALUE + ROTATED, 0, VALUE, VALUE_TILE)
    return value, _load(pointer, row, present, VALUE + ROTATED, VALUE, ROTATED, ROTATED_TILE)


@triton.jit
def _load(
    pointer: tl.tensor,
    row: tl.tensor,
    present: tl.tensor,
    STRIDE: tl.constexpr,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """Columns FIRST to FIRST + WIDTH of rows, zeros beside them and where a row is not present."""
    column = tl.arange(0, TILE)
    mask = present[:, None] & (column < WIDTH)[None]
    return tl.load(pointer + row[:, None] * STRIDE + FIRST + column[None], mask, 0.0)


@triton.jit
def _store(
    pointer: tl.tensor,
    row: tl.tensor,
    present: tl.tensor,
    tile: tl.tensor,
    STRIDE: tl.constexpr,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    column = tl.arange(0, TILE)
    mask = present[:, None] & (column < WIDTH)[None]
    tl.store(pointer + row[:, None] * STRIDE + FIRST + column[None], tile, mask)


@triton.jit
def _add(
    pointer: tl.tensor,
    place: tl.tensor,
    tile: tl.tensor,
    STRIDE: tl.constexpr,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    column = tl.arange(0, TILE)
    mask = (place >= 0)[:, None] & (column < WIDTH)[None]
    tl.atomic_add(pointer + place[:, None] * STRIDE + FIRST + column[None], tile, mask, sem="relaxed")
