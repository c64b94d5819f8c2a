"""Scores of a micro-batch's response tokens on the last pipeline stage, by the policy and by MTP layers."""

from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

from rlcore.algorithms.logprob import Entropy, TokenScores, score_tokens
from rlcore.models.context_parallel import whole_scores
from rlcore.models.forward import forward_mtp, output_weight, vocabulary_start
from rlcore.trainer.batch import MicroBatch
from rlcore.trainer.drafts import Drafts


@dataclass(frozen=True)
class Scorer:
    """Turns hidden states into log-probs of tokens, of which logits for `chunk` exist at a time.

    `temperature` is the one that responses are sampled at; it divides all logits.
    """

    sequence_parallel: bool
    temperature: float
    chunk: int | None

    def score(
        self, stage: torch.nn.Module, batch: MicroBatch, hidden_s1h: torch.Tensor, entropy: Entropy
    ) -> TokenScores:
        """Score all response tokens [t], from hidden states of `forward_hidden`."""
        targets_l = batch.local_targets_l
        scores = self._score(stage, hidden_s1h, batch.predict_l, targets_l, output_weight(stage), entropy)
        if batch.local_l is None:
            return scores
        entropy_l = scores.entropy_t
        return TokenScores(
            _whole(scores.log_probs_t, batch.local_l, batch),
            None if entropy_l is None else _whole(entropy_l, batch.local_l, batch),
        )

    def draft(self, stage: torch.nn.Module, batch: MicroBatch, hidden_s1h: torch.Tensor) -> Drafts | None:
        """Score response tokens as each MTP layer predicts them; None without such layers.

        No gradient reaches anything but the MTP layers: not the output weight either.
        """
        weight_vh = output_weight(stage).detach()
        log_probs, drafted = [], []
        layers = forward_mtp(stage, hidden_s1h, batch.tokens_s[None], batch.sequences)
        for further, mtp_hidden_s1h in enumerate(layers, start=1):
            rows = batch.drafted(further)
            targets_l = batch.targets_t[rows.drafted_l]
            scores = self._score(stage, mtp_hidden_s1h, rows.predict_l, targets_l, weight_vh, "none")
            log_probs.append(_whole(scores.log_probs_t, rows.drafted_l, batch))
            drafted.append((batch.past_t >= further).to(batch.loss_mask_t))
        return Drafts(torch.stack(log_probs), torch.stack(drafted)) if layers else None

    def _score(
        self,
        stage: torch.nn.Module,
        hidden_s1h: torch.Tensor,
        predict_l: torch.Tensor,
        targets_l: torch.Tensor,
        weight_vh: torch.Tensor,
        entropy: Entropy,
    ) -> TokenScores:
        if self.sequence_parallel:
            hidden_s1h = gather_from_sequence_parallel_region(hidden_s1h)
        return score_tokens(
            hidden_s1h[:, 0].index_select(0, predict_l),
            weight_vh,
            targets_l,
            temperature=self.temperature,
            first_id=vocabulary_start(stage),
            entropy=entropy,
            group=parallel_state.get_tensor_model_parallel_group() if self.sequence_parallel else None,
            tile_elements=self.chunk and self.chunk * len(weight_vh),
        )


def _whole(score_l: torch.Tensor, tokens_l: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
    """Put together what all context-parallel ranks have scored of a micro-batch's response tokens."""
    group = parallel_state.get_context_parallel_group()
    return whole_scores(score_l, tokens_l, len(batch.targets_t), group)
