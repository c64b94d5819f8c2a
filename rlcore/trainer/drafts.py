"""What multi-token prediction (MTP) layers made of response tokens: their loss, and how good they are."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Drafts:
    """Log-probs [k, t] that k MTP layers gave to t response tokens; `drafted_kt` is 0 where one had no say.

    The k-th layer needs k tokens more of a sample before the one that it predicts than the policy does.
    """

    log_probs_kt: torch.Tensor
    drafted_kt: torch.Tensor

    def loss(self, weight_t: torch.Tensor) -> torch.Tensor:
        """Cross entropy, each token with its share in the policy's loss, as the mean of the layers'."""
        return -(weight_t * self.drafted_kt * self.log_probs_kt).sum() / len(self.log_probs_kt)

    def sums(
        self, log_probs_t: torch.Tensor, weight_t: torch.Tensor, loss_mask_t: torch.Tensor
    ) -> Mapping[str, torch.Tensor]:
        """What `rates` needs, summed over a micro-batch. `log_probs_t` are the policy's, of the same tokens."""
        counted_kt = self.drafted_kt * loss_mask_t
        kept_kt = (self.log_probs_kt - log_probs_t).exp().clamp(max=1.0)
        return {
            "mtp/loss": -(weight_t * self.drafted_kt * self.log_probs_kt).sum(),
            "mtp/weight": (weight_t * self.drafted_kt).sum(),
            "mtp/accepted": (counted_kt * kept_kt).sum(),
            "mtp/drafted": counted_kt.sum(),
        }


def rates(sums: Mapping[str, float]) -> dict[str, float]:
    """Cross entropy in nats, and how often the policy would accept a draft.

    Speculative sampling (arXiv 2211.17192, section 3.5) keeps a token x drafted from q with probability
    min(1, p(x) / q(x)), which on average is Σ min(p, q) = E_p[min(1, q / p)]. Response tokens are samples of p,
    the policy: their mean of min(1, q / p) estimates it without another look at the vocabulary.
    """
    return {
        "mtp/loss": sums["mtp/loss"] / (sums["mtp/weight"] or 1.0),
        "mtp/acceptance": sums["mtp/accepted"] / (sums["mtp/drafted"] or 1.0),
    }
