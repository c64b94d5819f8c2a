"""How far engine and trainer are apart on a step's tokens: in log-probs, and in what sparse attention selected.

Where the engine says what it selected (`rlcore.models.selections`), log-probs are compared up to a sequence's
first difference in that: after a near-tie that fell otherwise, they rightly differ.
Axes: s packed tokens of this rank, w those of all context-parallel ranks, t response tokens.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from rlcore.models.selections import SELECTIONS
from rlcore.trainer.batch import MicroBatch
from rlcore.trainer.metrics import Tally


def own_selections(batches: Sequence[MicroBatch]) -> list[torch.Tensor | None]:
    """What this model selected, as `selections_t` of each micro-batch that it just ran; None without those.

    All ranks that share micro-batches must ask: each knows the layers of its pipeline stage, and the tokens of
    its context-parallel rank.
    """
    asked = [batch for batch in batches if batch.selections_t is not None]
    if not asked:
        return [None] * len(batches)
    hashes_w = torch.cat([_own_hashes(batch) for batch in asked])
    dist.all_reduce(hashes_w, group=parallel_state.get_pipeline_model_parallel_group())
    dist.all_reduce(hashes_w, group=parallel_state.get_context_parallel_group())
    parts = iter(hashes_w.split([sum(batch.sequences.lengths) for batch in asked]))
    return [None if batch.selections_t is None else _summed(batch, next(parts)) for batch in batches]


def _own_hashes(batch: MicroBatch) -> torch.Tensor:
    """Hashes of this rank's layers at its tokens, zeros at others'."""
    sequences = batch.sequences
    hash_w = batch.tokens_s.new_zeros(sum(sequences.lengths))
    hash_w[sequences.places] = sequences.shared[SELECTIONS]
    return hash_w


def _summed(batch: MicroBatch, hash_w: torch.Tensor) -> torch.Tensor:
    """Sums [t] from the start of each response token's sequence to the place that predicts it."""
    before_w = torch.cat([hash_w.new_zeros(1), hash_w.cumsum(0)])
    first_t = (batch.predict_t - batch.past_t).to(hash_w.device)
    return before_w[batch.predict_t.to(hash_w.device) + 1] - before_w[first_t]


@torch.no_grad()
def compare(batch: MicroBatch, log_probs_t: torch.Tensor, own_t: torch.Tensor | None) -> Tally:
    """Sums and the largest of the gaps |log-prob - the engine's|, over fresh tokens that count in the loss.

    `own_t` are this model's selections. A selection flip is a token where the difference to the engine's is
    another than one token before, or, for a sequence's first fresh token, any: something was selected otherwise
    between the two. Empty without log-probs of the engine.
    """
    if batch.rollout_log_probs_t is None:
        return Tally({}, {})
    fresh_t = torch.ones_like(batch.loss_mask_t) if batch.fresh_t is None else batch.fresh_t
    counted_t = batch.loss_mask_t * fresh_t
    sums = {}
    compared_t = counted_t
    if own_t is not None:
        difference_t = own_t - batch.selections_t
        before_t = torch.where(_follows_fresh(batch, fresh_t), difference_t.roll(1), 0)
        sums["flips"] = ((difference_t != before_t) * counted_t).sum()
        sums["selected"] = counted_t.sum()
        compared_t = counted_t * (difference_t == 0)
    gap_t = (log_probs_t - batch.rollout_log_probs_t).abs() * compared_t
    sums |= {"gap": gap_t.sum(), "compared": compared_t.sum()}
    return Tally(sums, {"logprob_gap/max": gap_t.max()})


def _follows_fresh(batch: MicroBatch, fresh_t: torch.Tensor) -> torch.Tensor:
    """Whether the token before a response token is a fresh one of the same response: bool [t]."""
    follows_t = fresh_t.roll(1) > 0
    follows_t[list(accumulate(batch.response_lengths[:-1], initial=0))] = False
    return follows_t
