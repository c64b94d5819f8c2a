"""What a recipe may say of this family alone, under `model.options`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveFloat


class IndexerOptions(BaseModel):
    """What becomes of the indexers' weights."""

    model_config = ConfigDict(extra="forbid")

    train: Literal["none", "kl"] = "none"
    """Keep them as they are, or bring their scores near to attention, by the KL divergence (DeepSeek-V3.2)."""
    coefficient: PositiveFloat = 0.01
    """Of that divergence, its mean over tokens summed over layers. The gradient's norm grows by it."""


class DsaOptions(BaseModel):
    """`model.options` of a recipe."""

    kernels: Literal["reference", "triton"] = "reference"
    """What chooses keys and attends to them: torch, or kernels for a GPU, which none has timed yet."""
    indexer: IndexerOptions = IndexerOptions()
    """Whether indexers learn."""
