"""Per-token estimates of the divergence between the policy and a frozen reference.

They see only the log-probs of the tokens that were sampled; reduction over tokens is the caller's.
"""

from typing import Literal

import torch

KLEstimator = Literal["k1", "k2", "k3", "low_var_kl"]

_LOW_VAR_BOUND = 10.0
# exp of this is a finite float32.
_LARGEST_EXPONENT = 80.0


def kl_divergence(
    log_probs_t: torch.Tensor,
    ref_log_probs_t: torch.Tensor,
    estimator: KLEstimator,
    importance_ratio_t: torch.Tensor | None = None,
) -> torch.Tensor:
    """Estimate KL(policy ‖ reference) for each sampled token, shape [t], in nats.

    With r = log π - log π_ref: k1 = r, k2 = r²/2, k3 = exp(-r) - 1 + r, and low_var_kl is k3 clamped to ±10
    (http://joschu.net/blog/kl-approx.html). `importance_ratio_t`, π / π_old, makes the estimate unbiased for
    tokens drawn from an older policy; it multiplies before the clamp.
    """
    difference_t = log_probs_t.float() - ref_log_probs_t.float()
    if estimator == "k1":
        kl_t = difference_t
    elif estimator == "k2":
        kl_t = difference_t.square() / 2
    else:
        if estimator == "low_var_kl":
            # The bound below gives these tokens no gradient, but nothing times infinity is not a number.
            difference_t = difference_t.clamp(min=-_LARGEST_EXPONENT)
        # expm1 keeps the digits that exp(-r) - 1 loses near zero, where a young policy spends its time.
        kl_t = torch.expm1(-difference_t) + difference_t
    if importance_ratio_t is not None:
        kl_t = importance_ratio_t * kl_t
    return kl_t.clamp(-_LOW_VAR_BOUND, _LOW_VAR_BOUND) if estimator == "low_var_kl" else kl_t
