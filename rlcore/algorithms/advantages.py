"""What happens to advantages after the estimator: the KL taken from the reward, and whitening."""

import torch


def subtract_kl(advantages_t: torch.Tensor, kl_t: torch.Tensor, coefficient: float) -> torch.Tensor:
    """Take coefficient · kl from each token's advantage, shape [t] (REINFORCE++, arXiv:2501.03262)."""
    return advantages_t - coefficient * kl_t


def whiten(advantages_t: torch.Tensor, loss_mask_t: torch.Tensor) -> torch.Tensor:
    """Shift and scale to mean 0 and (unbiased) variance 1 over the masked tokens, shape [t].

    A single masked token has no spread: its advantage becomes 0.
    """
    # In float32 equal advantages differ from their mean by a rounding, which the scale blows up.
    wide_t, mask_t = advantages_t.double(), loss_mask_t.double()
    count = mask_t.sum()
    centred_t = wide_t - (wide_t * mask_t).sum() / count.clamp(min=1)
    variance = (centred_t.square() * mask_t).sum() / (count - 1).clamp(min=1)
    return (centred_t * torch.rsqrt(variance + 1e-8)).to(advantages_t)
