"""Drawing tokens: a batch of logits, one uniform number per row, the log-prob of what was drawn.

The numbers are counter-based (SplitMix64 over seed, key and position), so that a draw depends neither on
the batch it is made in nor on how often its sequence was interrupted. Axes: b rows, v vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _mixed(value: int) -> int:
    for shift, factor in MIX:
        value = ((value ^ (value >> shift)) * factor) & MASK
    return value ^ (value >> 31)


def stream(numbers: Iterable[int]) -> int:
    """The random stream that these integers name, as a signed 64-bit counter base."""
    state = 0
    for number in numbers:
        state = _mixed((state + GAMMA + number) & MASK)
    return _signed(state)


def uniform(stream_b: torch.Tensor, position_b: torch.Tensor) -> torch.Tensor:
    """Numbers in [0, 1), float32 [b], from int64 streams and positions (Steele et al., SplitMix, 2014)."""
    z = stream_b + (position_b + 1) * _signed(GAMMA)
    for shift, factor in MIX:
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    z = z ^ _shifted(z, 31)
    return _shifted(z, 40).float() * 2.0**-24


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    return (z >> bits) & (MASK >> bits)


@dataclass(frozen=True)
class Knobs:
    """How each row samples. A knob that no row turns is None: its work is skipped."""

    temperature_b: torch.Tensor | None = None
    greedy_b: torch.Tensor | None = None
    top_p_b: torch.Tensor | None = None
    top_k_b: torch.Tensor | None = None


def sample(logits_bv: torch.Tensor, uniform_b: torch.Tensor, knobs: Knobs) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token a row: ids int64 [b] and their log-probs float32 [b].

    Log-probs are of the distribution drawn from: tempered, cut and renormalised. Greedy rows report those
    at temperature 1, as their own distribution would say nothing.
    """
    logits_bv = logits_bv.float()
    if knobs.temperature_b is not None:
        logits_bv = logits_bv / knobs.temperature_b[:, None]
    if knobs.top_p_b is not None or knobs.top_k_b is not None:
        logits_bv = _cut(logits_bv, knobs.top_p_b, knobs.top_k_b)
    log_probs_bv = logits_bv.log_softmax(-1)
    cdf_bv = log_probs_bv.exp().cumsum_(-1)
    point_b1 = uniform_b[:, None] * cdf_bv[:, -1:]
    # Only a NaN lies beyond the last token; its log-prob tells the caller.
    token_b1 = torch.searchsorted(cdf_bv, point_b1, right=True).clamp_(max=cdf_bv.shape[-1] - 1)
    if knobs.greedy_b is not None:
        token_b1 = torch.where(knobs.greedy_b[:, None], logits_bv.argmax(-1, keepdim=True), token_b1)
    return token_b1[:, 0], log_probs_bv.gather(-1, token_b1)[:, 0]


def _cut(logits_bv: torch.Tensor, top_p_b: torch.Tensor | None, top_k_b: torch.Tensor | None) -> torch.Tensor:
    """Set to -inf all but the `top_k` largest and, of these, what lies beyond `top_p` of their probability."""
    ordered_bv, index_bv = logits_bv.sort(dim=-1, descending=True, stable=True)
    if top_k_b is not None:
        rank_v = torch.arange(ordered_bv.shape[-1], device=ordered_bv.device)
        ordered_bv = ordered_bv.masked_fill(rank_v >= top_k_b[:, None], float("-inf"))
    if top_p_b is not None:
        probs_bv = ordered_bv.softmax(-1)
        before_bv = probs_bv.cumsum(-1) - probs_bv
        # Where top_p is 1 nothing may go, though rounding can lift the sum to 1 early.
        beyond_bv = (before_bv >= top_p_b[:, None]) & (top_p_b[:, None] < 1)
        ordered_bv = ordered_bv.masked_fill(beyond_bv, float("-inf"))
    return torch.empty_like(ordered_bv).scatter_(-1, index_bv, ordered_bv)
