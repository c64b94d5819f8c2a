"""Selection and sparse attention of GLM-5 on a GPU: Triton's kernels, the torch reference, and others.

    python tests/gpu/bench_dsa_kernels.py [--lengths 4096 65536] [--heads 16 64] [--gpu H200]

Prints JSON, a row for each way, pass and size: bfloat16, one causal sequence, 2048 keys for each query, of 576
widths of which 512 are values; 32 index heads of 128. `dense` is torch's attention to all keys, at the widths
that it has in this model without latents (256). `tilelang` is SGLang's kernel, where that is installed: it has
no backward pass.

FLOPs are what a way needs: times compare ways, TFLOP/s say how well one uses the GPU. GB/s counts what Triton's
programs read and write, caches included: a query's keys once for each tile of heads, scores once written and
five times read. The limit is the longer of FLOPs at the GPU's peak and tensors moved once at its bandwidth;
`of_limit` is that time over the measured one.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from rlcore_glm52_dsa.kernels import functions
from triton.testing import do_bench

TOPK, VALUE, WIDTH, DENSE, INDEX_HEADS, INDEX_WIDTH = 2048, 512, 576, 256, 32, 128
# Dense bfloat16 FLOP/s and bytes/s, from NVIDIA's data sheets (SXM).
GPUS = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12)}
TILELANG = ("kernels.ops.attention.dsa", "srt.layers.attention.dsa", "srt.layers.attention.nsa")


@dataclass(frozen=True)
class Work:
    """What a pass needs: FLOPs, bytes of its tensors, and bytes that programs move."""

    flops: float
    tensors: float
    moved: float


def row(work: Work, gpu: str, seconds: float, **labels: Any) -> dict[str, Any]:
    peak, bandwidth = GPUS[gpu]
    return {
        **labels,
        "ms": round(seconds * 1e3, 4),
        "tflops": round(work.flops / seconds / 1e12, 1),
        "gb_per_s": round(work.moved / seconds / 1e9, 1),
        "of_limit": round(max(work.flops / peak, work.tensors / bandwidth) / seconds, 4),
    }


def seconds(run: Callable[[], Any], *leaves: torch.Tensor) -> float:
    """Median of repeated runs, each with an empty cache and without gradients from before."""
    return do_bench(run, grad_to_none=list(leaves), return_mode="median") / 1e3


def passes(attend: Callable[[], torch.Tensor], *leaves: torch.Tensor) -> Iterator[tuple[str, float]]:
    """Seconds of the forward pass, and then of the backward pass."""
    yield "forward", seconds(attend)
    out = attend()
    grad = torch.randn_like(out)
    yield "backward", seconds(lambda: out.backward(grad, retain_graph=True), *leaves)


def selection(length: int, gpu: str) -> Iterator[dict[str, Any]]:
    last = torch.arange(length, device="cuda")
    shapes = (length, INDEX_HEADS, INDEX_WIDTH), (length, INDEX_WIDTH), (length, INDEX_HEADS)
    query, key, weight = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for shape in shapes)
    # Queries that see no more keys than they may choose need no scores.
    pairs = max(0, length * (length + 1) - TOPK * (TOPK + 1)) / 2
    tensors = 2 * (query.numel() + key.numel() + weight.numel()) + 4 * length * min(TOPK, length)
    work = Work(2 * pairs * INDEX_HEADS * (INDEX_WIDTH + 1), tensors, tensors + 6 * 4 * pairs)
    for name in ("triton", "reference"):
        select = functions(name).select
        taken = seconds(lambda select=select: select(query, key, weight, torch.zeros_like(last), last, TOPK))
        yield row(work, gpu, taken, what="selection", way=name, length=length)


def causal_choices(length: int) -> torch.Tensor:
    """Random places that are not after the query, ascending; all of them, and -1, where these are few."""
    place_t1 = torch.arange(length, dtype=torch.int32, device="cuda")[:, None]
    slot_k = torch.arange(min(TOPK, length), dtype=torch.int32, device="cuda")
    drawn_tk = (torch.rand(length, len(slot_k), device="cuda") * (place_t1 + 1)).int().sort(1).values
    few_tk = torch.where(slot_k <= place_t1, slot_k, -1)
    return torch.where(place_t1 < TOPK, few_tk, drawn_tk)


def attention_work(length: int, heads: int) -> dict[str, Work]:
    chosen = min(TOPK, length)
    pairs = chosen * (chosen + 1) / 2 + (length - chosen) * chosen
    query, out, key, index = (2 * length * size for size in (heads * WIDTH, heads * VALUE, WIDTH, 2 * chosen))
    forward_tiles, backward_tiles = -(-heads // 64), -(-heads // 32)
    forward, backward = query + out + key + index, 2 * query + 2 * out + 3 * key + index
    return {
        "forward": Work(
            2 * pairs * heads * (WIDTH + VALUE), forward, forward + pairs * 2 * WIDTH * forward_tiles
        ),
        # Scores again; gradients of probabilities, queries, and of keys by both ways. Atomics add in float32.
        "backward": Work(
            2 * pairs * heads * (3 * WIDTH + 2 * VALUE), backward, backward + pairs * 6 * WIDTH * backward_tiles
        ),
    }


def sparse_attention(length: int, heads: int, gpu: str) -> Iterator[dict[str, Any]]:
    work, index = attention_work(length, heads), causal_choices(length)
    query = torch.randn(length, heads, WIDTH, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    key = torch.randn(length, WIDTH, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    for name in ("triton", "reference"):
        attend = functions(name).attend

        def run(attend: Callable[..., torch.Tensor] = attend) -> torch.Tensor:
            return attend(query, key, index, DENSE**-0.5, VALUE)

        for what, taken in passes(run, query, key):
            yield row(work[what], gpu, taken, what=what, way=name, length=length, heads=heads)
    if (tilelang := tilelang_attention()) and length >= TOPK:
        with torch.no_grad():
            taken = seconds(lambda: tilelang(query, key[:, None], index[:, None], DENSE**-0.5, VALUE))
        yield row(work["forward"], gpu, taken, what="forward", way="tilelang", length=length, heads=heads)


def tilelang_attention() -> Callable[..., torch.Tensor] | None:
    for place in TILELANG:
        try:
            return import_module(f"sglang.{place}.tilelang_kernel").tilelang_sparse_fwd
        except ImportError:
            continue
    return None


def dense_attention(length: int, heads: int, gpu: str) -> Iterator[dict[str, Any]]:
    shape = (1, heads, length, DENSE)
    query, key, value = (
        torch.randn(shape, dtype=torch.bfloat16, device="cuda", requires_grad=True) for _ in range(3)
    )
    flops, size = 2.0 * length * (length + 1) / 2 * heads * 2 * DENSE, 2 * query.numel()
    work = {"forward": Work(flops, 4 * size, 4 * size), "backward": Work(2.5 * flops, 8 * size, 8 * size)}
    for what, taken in passes(
        lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True), query, key, value
    ):
        yield row(work[what], gpu, taken, what=what, way="dense", length=length, heads=heads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16_384, 32_768, 65_536])
    parser.add_argument("--heads", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--gpu", choices=GPUS, help="whose limits count; by default the one that there is")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device to measure")
    name = torch.cuda.get_device_name()
    gpu = args.gpu or next((each for each in GPUS if each in name), None)
    if gpu is None:
        parser.error(f"the limits of {name} are not known: --gpu {' or '.join(GPUS)} compares with theirs")
    rows = []
    for length in args.lengths:
        rows += selection(length, gpu)
        for heads in args.heads:
            rows += sparse_attention(length, heads, gpu)
            rows += dense_attention(length, heads, gpu)
    print(json.dumps({"device": name, "limits": gpu, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
