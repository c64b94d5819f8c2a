"""How per-token losses become one number: a weight for every token, fixed once per optimizer step.

Because the weights know the whole step, the loss is their plain sum over any micro-batches: how samples are
packed, split or spread over ranks cannot change it.
"""

from collections.abc import Sequence
from typing import Literal

import torch

Reduction = Literal["sample", "token"]


def token_weights(masks: Sequence[torch.Tensor], reduction: Reduction) -> list[torch.Tensor]:
    """Weights w of all samples of a step, one float32 tensor [t_i] per loss mask, with loss = Σ w·l.

    "sample": mean over samples of each sample's masked token mean, w = mask / (tokens_i · samples);
    samples without a loss token count in `samples`. "token": mean over all tokens, w = mask / tokens.
    """
    tokens = [float(mask.sum()) for mask in masks]
    if reduction == "token":
        total = max(sum(tokens), 1.0)
        return [mask.float() / total for mask in masks]
    return [mask.float() / (max(count, 1.0) * len(masks)) for mask, count in zip(masks, tokens, strict=True)]
