"""Log-probs and entropy of chosen tokens, straight from hidden states and the output weight.

Logits exist only one tile (some tokens by some vocabulary) at a time, in the forward pass and again in the
backward pass, so 151k-word vocabularies cost no memory worth the name; a problem that fits into one tile keeps
it and recomputes nothing. With tensor parallelism each rank holds a slice of the vocabulary, and the ranks
exchange three numbers per token. Where gradients of the hidden states are summed over ranks is left to the
gather that made them.

Axes: t tokens, h hidden, v vocabulary rows on this rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

Entropy = Literal["none", "value", "gradient"]

_TILE_VOCABULARY = 2048
# Large enough to keep all cores busy between two calls, small enough for a CPU's shared cache.
_TILE_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}
# A finite start for the running maximum: differences with it never become NaN.
_LOWEST = -1e30


@dataclass(frozen=True)
class TokenScores:
    """Per token, float32, natural logarithm; `entropy_t` is None where it was not asked for."""

    log_probs_t: torch.Tensor
    entropy_t: torch.Tensor | None


def score_tokens(
    hidden_th: torch.Tensor,
    weight_vh: torch.Tensor,
    targets_t: torch.Tensor,
    *,
    temperature: float = 1.0,
    first_id: int = 0,
    entropy: Entropy = "none",
    group: dist.ProcessGroup | None = None,
    tile_elements: int | None = None,
) -> TokenScores:
    """Score `targets_t` (int64 vocabulary ids) under softmax(hidden · weightᵀ / temperature).

    `weight_vh` is the output weight, or this rank's slice of its rows from vocabulary id `first_id` on where
    the ranks of `group` share them (padding rows left out). Entropy comes as a value, or with a "gradient".
    Inputs in bfloat16 give bfloat16 products, as the model's own output layer does; everything after the
    product is float32 (float64 where the inputs are). The gradient of `hidden_th` is this rank's share of the
    sum over `group`. A tile holds `tile_elements` logits; by default as many as suit the device.
    """
    tiling = _Tiling.of(hidden_th, weight_vh, first_id, tile_elements)
    log_probs_t, entropy_t = _ScoreTokens.apply(  # type: ignore[no-untyped-call]
        hidden_th, weight_vh, targets_t, temperature, entropy, tiling, group
    )
    return TokenScores(log_probs_t, None if entropy == "none" else entropy_t)


@dataclass(frozen=True)
class _Tiling:
    """How tokens [0, tokens) by this rank's vocabulary [0, rows), starting at id `first_id`, are cut up."""

    tokens: int
    rows: int
    first_id: int
    tile_tokens: int
    tile_rows: int

    @classmethod
    def of(
        cls,
        hidden_th: torch.Tensor,
        weight_vh: torch.Tensor,
        first_id: int,
        tile_elements: int | None,
    ) -> "_Tiling":
        tokens, rows = len(hidden_th), len(weight_vh)
        budget = tile_elements or _TILE_ELEMENTS[hidden_th.device.type]
        if tokens * rows <= budget:
            return cls(tokens, rows, first_id, max(tokens, 1), max(rows, 1))
        tile_rows = min(rows, _TILE_VOCABULARY, budget)
        return cls(tokens, rows, first_id, max(budget // tile_rows, 1), tile_rows)

    @property
    def is_single(self) -> bool:
        return self.tile_tokens >= self.tokens and self.tile_rows >= self.rows

    def row_slices(self) -> Iterator[slice]:
        return (
            slice(start, min(start + self.tile_rows, self.rows))
            for start in range(0, self.rows, self.tile_rows)
        )

    def token_slices(self) -> Iterator[slice]:
        return (
            slice(start, min(start + self.tile_tokens, self.tokens))
            for start in range(0, self.tokens, self.tile_tokens)
        )


class _Running:
    """Softmax statistics of each token, updated tile by tile (online softmax, arXiv:1805.02867).

    With maximum m: `total` = Σ exp(x - m), `moment` = Σ exp(x - m)·(x - m), and the target's logit.
    """

    def __init__(self, tokens: int, like: torch.Tensor, with_moment: bool) -> None:
        zeros_t = like.new_zeros(tokens, dtype=_wide(like))
        self.maximum_t = torch.full_like(zeros_t, _LOWEST)
        self.total_t, self.moment_t, self.target_t = zeros_t, zeros_t.clone(), zeros_t.clone()
        self.with_moment = with_moment

    def rescale(self, maximum_t: torch.Tensor, tokens: slice = slice(None)) -> None:
        shift_t = self.maximum_t[tokens] - maximum_t
        factor_t = shift_t.exp()
        if self.with_moment:
            self.moment_t[tokens] = factor_t * (self.moment_t[tokens] + shift_t * self.total_t[tokens])
        self.total_t[tokens] *= factor_t
        self.maximum_t[tokens] = maximum_t

    def add(self, logits_tv: torch.Tensor, tokens: slice) -> None:
        """Take in a tile, whose storage becomes its logits less the new maximum."""
        maximum_t = torch.maximum(self.maximum_t[tokens], logits_tv.amax(dim=1))
        self.rescale(maximum_t, tokens)
        exponentials_tv = logits_tv.sub_(maximum_t[:, None]).exp()
        self.total_t[tokens] += exponentials_tv.sum(dim=1)
        if self.with_moment:
            self.moment_t[tokens] += exponentials_tv.mul_(logits_tv).sum(dim=1)

    def merge_over(self, group: dist.ProcessGroup) -> None:
        """Combine the vocabulary slices of all ranks."""
        maximum_t = self.maximum_t.clone()
        dist.all_reduce(maximum_t, dist.ReduceOp.MAX, group=group)
        self.rescale(maximum_t)
        sums_3t = torch.stack([self.total_t, self.moment_t, self.target_t])
        dist.all_reduce(sums_3t, group=group)
        self.total_t, self.moment_t, self.target_t = sums_3t.unbind()

    @property
    def log_total_t(self) -> torch.Tensor:
        return self.total_t.log()

    @property
    def entropy_t(self) -> torch.Tensor:
        return self.log_total_t - self.moment_t / self.total_t


def _wide(tensor: torch.Tensor) -> torch.dtype:
    """The type in which sums are kept: at least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _logits(
    hidden_th: torch.Tensor, weight_vh: torch.Tensor, tokens: slice, rows: slice, temperature: float
) -> torch.Tensor:
    logits_tv = (hidden_th[tokens] @ weight_vh[rows].t()).to(_wide(hidden_th))
    return logits_tv if temperature == 1.0 else logits_tv.div_(temperature)


def _column_of_target(targets_t: torch.Tensor, first_id: int, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """The target's column in a tile, and whether it lies there at all (else the column is a harmless 0)."""
    column_t = targets_t - (first_id + rows.start)
    inside_t = (column_t >= 0) & (column_t < rows.stop - rows.start)
    return column_t.where(inside_t, 0)[:, None], inside_t


class _ScoreTokens(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_th: torch.Tensor,
        weight_vh: torch.Tensor,
        targets_t: torch.Tensor,
        temperature: float,
        entropy: Entropy,
        tiling: _Tiling,
        group: dist.ProcessGroup | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        running = _Running(tiling.tokens, hidden_th, with_moment=entropy != "none")
        logits_tv = None
        for rows in tiling.row_slices():
            for tokens in tiling.token_slices():
                logits_tv = _logits(hidden_th, weight_vh, tokens, rows, temperature)
                column_t, inside_t = _column_of_target(targets_t[tokens], tiling.first_id, rows)
                running.target_t[tokens] += logits_tv.gather(1, column_t)[:, 0].where(inside_t, 0.0)
                running.add(logits_tv, tokens)
        own_maximum_t = running.maximum_t
        if group is not None:
            own_maximum_t = own_maximum_t.clone()
            running.merge_over(group)
        normalizer_t = running.maximum_t + running.log_total_t
        kept_tv = None
        if tiling.is_single and logits_tv is not None and any(ctx.needs_input_grad[:2]):
            kept_tv = logits_tv.sub_((normalizer_t - own_maximum_t)[:, None])
        entropy_t = running.entropy_t
        ctx.save_for_backward(hidden_th, weight_vh, targets_t, normalizer_t, entropy_t, kept_tv)
        ctx.temperature, ctx.tiling = temperature, tiling
        ctx.entropy_has_gradient = entropy == "gradient"
        if not ctx.entropy_has_gradient:
            ctx.mark_non_differentiable(entropy_t)
        return running.target_t - normalizer_t, entropy_t

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_t: torch.Tensor, entropy_grad_t: torch.Tensor) -> tuple[Any, ...]:
        hidden_th, weight_vh, targets_t, normalizer_t, entropy_t, kept_tv = ctx.saved_tensors
        tiling: _Tiling = ctx.tiling
        hidden_grad_th = torch.zeros_like(hidden_th, dtype=_wide(hidden_th))
        weight_grad_vh = torch.zeros_like(weight_vh) if ctx.needs_input_grad[1] else None
        for rows in tiling.row_slices():
            tile_grad_vh = None
            for tokens in tiling.token_slices():
                log_probs_tv = (
                    kept_tv
                    if kept_tv is not None
                    else _logits(hidden_th, weight_vh, tokens, rows, ctx.temperature).sub_(
                        normalizer_t[tokens, None]
                    )
                )
                logits_grad_tv = _logits_gradient(
                    log_probs_tv,
                    grad_t[tokens],
                    entropy_grad_t[tokens] if ctx.entropy_has_gradient else None,
                    entropy_t[tokens],
                )
                column_t, inside_t = _column_of_target(targets_t[tokens], tiling.first_id, rows)
                logits_grad_tv.scatter_add_(1, column_t, grad_t[tokens].where(inside_t, 0.0)[:, None])
                if ctx.temperature != 1.0:
                    logits_grad_tv.div_(ctx.temperature)
                logits_grad_tv = logits_grad_tv.to(weight_vh.dtype)
                hidden_grad_th[tokens] += logits_grad_tv @ weight_vh[rows]
                if weight_grad_vh is None:
                    continue
                part_vh = (logits_grad_tv.t() @ hidden_th[tokens]).to(hidden_grad_th.dtype)
                tile_grad_vh = part_vh if tile_grad_vh is None else tile_grad_vh.add_(part_vh)
            if weight_grad_vh is not None and tile_grad_vh is not None:
                weight_grad_vh[rows] = tile_grad_vh
        return hidden_grad_th.to(hidden_th.dtype), weight_grad_vh, None, None, None, None, None


def _logits_gradient(
    log_probs_tv: torch.Tensor,
    grad_t: torch.Tensor,
    entropy_grad_t: torch.Tensor | None,
    entropy_t: torch.Tensor,
) -> torch.Tensor:
    """Gradient at a tile's logits but for the target's own +grad; -p·(g + g_H·(log p + H))."""
    probs_tv = log_probs_tv.exp()
    if entropy_grad_t is None:
        return probs_tv.mul_(-grad_t[:, None])
    factor_tv = (log_probs_tv + entropy_t[:, None]).mul_(entropy_grad_t[:, None]).add_(grad_t[:, None])
    return probs_tv.mul_(factor_tv).neg_()
