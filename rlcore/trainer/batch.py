"""Micro-batches: training samples packed end to end, as tensors.

Axes: s rows of this context-parallel rank (packed tokens of prompts, responses and padding; those of a shared
prompt once), t response tokens of all samples, on every rank alike, l those of them that this rank scores, n
samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlcore.data.train_sample import TrainSample
from rlcore.models.attention import PackedSequences
from rlcore.models.context_parallel import ContextSplit, pad
from rlcore.models.selections import SELECTIONS
from rlcore.models.shared_rows import SharedRows


@dataclass(frozen=True, slots=True)
class Drafted:
    """Response tokens `drafted_l` (of the t) that this rank predicts, from its rows `predict_l` (of the s)."""

    drafted_l: torch.Tensor
    predict_l: torch.Tensor


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Packed samples as tensors. The hidden state at `predict_l` (a row of the s) predicts `local_targets_l`.

    `local_l` says which response tokens those are, None where they are all. `indices` say which samples of the
    step these are; `weight_t` is each token's share in the step's loss. `predict_t` and `past_t`, on the host,
    say where among the tokens of all context-parallel ranks each response token is predicted, and how many of
    its sample stand before that place.
    """

    indices: tuple[int, ...]
    response_lengths: tuple[int, ...]
    sequences: PackedSequences
    tokens_s: torch.Tensor
    predict_l: torch.Tensor
    local_l: torch.Tensor | None
    predict_t: torch.Tensor
    past_t: torch.Tensor
    targets_t: torch.Tensor
    sample_t: torch.Tensor
    loss_mask_t: torch.Tensor
    weight_t: torch.Tensor
    advantages_t: torch.Tensor | None
    old_log_probs_t: torch.Tensor | None
    ref_log_probs_t: torch.Tensor | None
    rollout_log_probs_t: torch.Tensor | None
    fresh_t: torch.Tensor | None
    selections_t: torch.Tensor | None

    @property
    def local_targets_l(self) -> torch.Tensor:
        return self.targets_t if self.local_l is None else self.targets_t[self.local_l]

    def drafted(self, further: int) -> Drafted:
        """Find the tokens to be predicted from `further` places before the usual one, in the same sample."""
        far_t = (self.past_t >= further).nonzero()[:, 0]
        places_t = self.predict_t[far_t] - further
        local_l, predict_l = self.sequences.cp.local(places_t, self.sequences.lengths)
        device = self.targets_t.device
        return Drafted((far_t if local_l is None else far_t[local_l]).to(device), predict_l.to(device))


def micro_batch(
    samples: Sequence[TrainSample],
    indices: Sequence[int],
    device: torch.device,
    weights: Sequence[torch.Tensor] | None = None,
    cp: ContextSplit | None = None,
    *,
    tokens: int = 0,
    filler: bool = False,
    share_prompts: bool = False,
) -> MicroBatch:
    """Pack samples, by index. `weights` are each sample's shares [t] in the loss, by default zero.

    `cp` says what this rank has of their tokens, by default all. Padding makes those of all ranks `tokens` at
    least; all that a `filler` has is padding. `share_prompts` lets samples of equal prompts share their rows.
    """
    members = [samples[i] for i in indices]
    lengths = [len(sample.tokens) for sample in members]
    responses = torch.tensor([sample.response_length for sample in members])
    rows = _shared_rows(members, lengths) if share_prompts else None
    sequences = PackedSequences.of(lengths, device, cp, tokens=tokens, filler=filler, rows=rows)
    starts = torch.tensor([0, *sequences.lengths]).cumsum(0)[: len(members)]
    prompt_lengths = torch.tensor([sample.prompt_length for sample in members])
    # Response token j of a sample stands at start + prompt + j; the hidden state one place before predicts it.
    offsets = starts + prompt_lengths - 1 - (responses.cumsum(0) - responses)
    predict_t = torch.arange(int(responses.sum())) + offsets.repeat_interleave(responses)
    ids = [np.asarray(sample.tokens, dtype=np.int64) for sample in members]
    tokens_w = pad(torch.from_numpy(np.concatenate(ids)), lengths, sequences.lengths)
    tokens_s = sequences.cp.split(tokens_w, sequences.lengths).to(device)
    local_l, predict_l = sequences.cp.local(predict_t, sequences.lengths)
    predict_l = predict_l.to(device)
    if sequences.rows:
        tokens_s, predict_l = sequences.rows.once(tokens_s), sequences.rows.row_w[predict_l]
    weight_t = torch.cat([weights[i] for i in indices]) if weights else torch.zeros(len(predict_t))
    selections_t = _joined(members, lambda sample: sample.selections, device, np.int64)
    if selections_t is not None:
        sequences.shared[SELECTIONS] = torch.zeros_like(sequences.places)
    return MicroBatch(
        indices=tuple(indices),
        response_lengths=tuple(responses.tolist()),
        sequences=sequences,
        tokens_s=tokens_s,
        predict_l=predict_l,
        local_l=None if local_l is None else local_l.to(device),
        predict_t=predict_t,
        past_t=predict_t - starts.repeat_interleave(responses),
        targets_t=tokens_w[predict_t + 1].to(device),
        sample_t=torch.arange(len(members)).repeat_interleave(responses).to(device),
        loss_mask_t=_joined(members, lambda sample: sample.loss_mask, device),
        weight_t=weight_t.to(device),
        advantages_t=_joined(members, lambda sample: sample.advantages, device),
        old_log_probs_t=_joined(members, lambda sample: sample.old_log_probs, device),
        ref_log_probs_t=_joined(members, lambda sample: sample.ref_log_probs, device),
        rollout_log_probs_t=_joined(members, lambda sample: sample.rollout_log_probs, device),
        fresh_t=_joined(members, lambda sample: sample.fresh, device),
        selections_t=selections_t,
    )


def _shared_rows(members: Sequence[TrainSample], lengths: Sequence[int]) -> SharedRows | None:
    # Not a prompt's last token: it predicts the first of a response, and each response has rows of its own.
    return SharedRows.of([sample.tokens[: sample.prompt_length - 1] for sample in members], lengths)


def _joined(
    samples: Sequence[TrainSample],
    field: Callable[[TrainSample], Sequence[float] | None],
    device: torch.device,
    dtype: type[np.generic] = np.float32,
) -> torch.Tensor | None:
    """One tensor [t] of a per-token field; None unless every sample has it."""
    parts = [part for sample in samples if (part := field(sample)) is not None]
    if len(parts) < len(samples):
        return None
    return torch.from_numpy(np.concatenate([np.asarray(part, dtype=dtype) for part in parts])).to(device)
