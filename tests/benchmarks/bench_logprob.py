"""Log-probs and entropy in tiles against logits held whole: time and extra memory, both passes, float32.

Usage: python tests/benchmarks/bench_logprob.py [--tokens 4096] [--vocabulary 151552] [--no-entropy]
Prints JSON; a ratio below 1 is in favour of tiles. Each way runs in a process of its own.
"""

import argparse
import json
import multiprocessing
import resource
import time

import torch

from rlcore.algorithms.logprob import score_tokens


def whole(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, entropy: bool) -> torch.Tensor:
    log_probs_tv = torch.log_softmax(hidden @ weight.t(), -1)
    chosen_t = log_probs_tv.gather(1, targets[:, None])[:, 0]
    return chosen_t - (log_probs_tv.exp() * log_probs_tv).sum(-1) if entropy else chosen_t


def tiles(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, entropy: bool) -> torch.Tensor:
    scores = score_tokens(hidden, weight, targets, entropy="gradient" if entropy else "none")
    return scores.log_probs_t if scores.entropy_t is None else scores.log_probs_t + scores.entropy_t


WAYS = {"whole": whole, "tiles": tiles}


def measure(way: str, sizes: argparse.Namespace) -> dict[str, float]:
    """Best seconds of `repeats`, and peak memory above the inputs and their gradients in GiB."""
    torch.set_num_threads(sizes.threads)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(sizes.tokens, sizes.hidden, generator=generator).requires_grad_()
    weight = (torch.randn(sizes.vocabulary, sizes.hidden, generator=generator) / 23).requires_grad_()
    targets = torch.randint(0, sizes.vocabulary, (sizes.tokens,), generator=generator)
    hidden.grad, weight.grad = torch.ones_like(hidden), torch.ones_like(weight)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(sizes.repeats):
        start = time.perf_counter()
        WAYS[way](hidden, weight, targets, sizes.entropy).sum().backward()
        seconds.append(time.perf_counter() - start)
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": min(seconds), "extra_gib": extra / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=151_552)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--entropy", action=argparse.BooleanOptionalAction, default=True)
    sizes = parser.parse_args()
    found = {}
    for way in WAYS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[way] = pool.apply(measure, (way, sizes))
    ratios = {name: found["tiles"][name] / found["whole"][name] for name in ("seconds", "extra_gib")}
    print(json.dumps({"sizes": vars(sizes), **found, "tiles_over_whole": ratios}, indent=2))


if __name__ == "__main__":
    main()
