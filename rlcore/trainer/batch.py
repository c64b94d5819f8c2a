"""What a trainer is fed: samples as plain numbers, and micro-batches packed from them.

Axes: s packed tokens (prompts and responses end to end), t response tokens, n samples.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from rlcore.data.packing import pack
from rlcore.models.attention import PackedSequences


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSample:
    """A prompt and its response, as the trainer needs them; plain data that may come from another process.

    `tokens` is prompt and response together, of which the first `prompt_length` (at least 1) are the prompt.
    All other sequences have one entry per response token; log-probs are natural logarithms. `fresh` marks tokens
    that the engine drew with the weights of this rollout's start: only there do engine and trainer have to agree.
    """

    name: str
    tokens: Sequence[int]
    prompt_length: int
    loss_mask: Sequence[float]
    advantages: Sequence[float] | None = None
    old_log_probs: Sequence[float] | None = None
    ref_log_probs: Sequence[float] | None = None
    rollout_log_probs: Sequence[float] | None = None
    fresh: Sequence[bool] | None = None

    @property
    def response_length(self) -> int:
        return len(self.tokens) - self.prompt_length


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Packed samples as tensors. The hidden state at `predict_t` (a place among the s) predicts `targets_t`.

    `indices` say which samples of the step these are; `weight_t` is each token's share in the step's loss.
    """

    indices: tuple[int, ...]
    response_lengths: tuple[int, ...]
    sequences: PackedSequences
    tokens_s: torch.Tensor
    predict_t: torch.Tensor
    targets_t: torch.Tensor
    sample_t: torch.Tensor
    loss_mask_t: torch.Tensor
    weight_t: torch.Tensor
    advantages_t: torch.Tensor | None
    old_log_probs_t: torch.Tensor | None
    ref_log_probs_t: torch.Tensor | None
    rollout_log_probs_t: torch.Tensor | None
    fresh_t: torch.Tensor | None


def micro_batches(
    samples: Sequence[TrainSample],
    max_tokens: int,
    device: torch.device,
    weights: Sequence[torch.Tensor] | None = None,
) -> list[MicroBatch]:
    """Pack samples under `max_tokens`. `weights` [t] per sample are the shares in the loss; without, all zero."""
    return [
        _micro_batch(samples, tuple(indices), device, weights)
        for indices in pack([len(sample.tokens) for sample in samples], max_tokens)
    ]


def _micro_batch(
    samples: Sequence[TrainSample],
    indices: tuple[int, ...],
    device: torch.device,
    weights: Sequence[torch.Tensor] | None,
) -> MicroBatch:
    members = [samples[i] for i in indices]
    lengths = [len(sample.tokens) for sample in members]
    responses = torch.tensor([sample.response_length for sample in members])
    starts = torch.tensor([0, *lengths]).cumsum(0)
    prompt_lengths = torch.tensor([sample.prompt_length for sample in members])
    # Response token j of a sample stands at start + prompt + j; the hidden state one place before predicts it.
    offsets = starts[:-1] + prompt_lengths - 1 - (responses.cumsum(0) - responses)
    predict_t = torch.arange(int(responses.sum())) + offsets.repeat_interleave(responses)
    tokens_s = torch.tensor(list(chain.from_iterable(sample.tokens for sample in members)))
    loss_mask_t = _joined(members, lambda sample: sample.loss_mask)
    assert loss_mask_t is not None
    return MicroBatch(
        indices=indices,
        response_lengths=tuple(responses.tolist()),
        sequences=PackedSequences.of(lengths, device),
        tokens_s=tokens_s.to(device),
        predict_t=predict_t.to(device),
        targets_t=tokens_s[predict_t + 1].to(device),
        sample_t=torch.arange(len(members)).repeat_interleave(responses).to(device),
        loss_mask_t=loss_mask_t.to(device),
        weight_t=(
            torch.zeros_like(loss_mask_t) if weights is None else torch.cat([weights[i] for i in indices])
        ).to(device),
        advantages_t=_joined(members, lambda sample: sample.advantages, device),
        old_log_probs_t=_joined(members, lambda sample: sample.old_log_probs, device),
        ref_log_probs_t=_joined(members, lambda sample: sample.ref_log_probs, device),
        rollout_log_probs_t=_joined(members, lambda sample: sample.rollout_log_probs, device),
        fresh_t=_joined(members, lambda sample: sample.fresh, device),
    )


def _joined(
    samples: Iterable[TrainSample],
    field: Callable[[TrainSample], Sequence[float] | None],
    device: torch.device | None = None,
) -> torch.Tensor | None:
    """One float32 tensor [t] of a per-token field; None unless every sample has it."""
    parts = [field(sample) for sample in samples]
    if any(part is None for part in parts):
        return None
    return torch.tensor(list(chain.from_iterable(parts)), dtype=torch.float32, device=device)
