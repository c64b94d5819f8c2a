"""What every part of a recipe is made of: the strict section, and a plugin chosen by name."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
)


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


def _bare_name(value: object) -> object:
    return {"use": value} if isinstance(value, str) else value


class Use(Section):
    """A plugin chosen by name. `NAME` alone is short for `{use: NAME}`; `dist:NAME` picks among equals."""

    use: str
    """Name of the entry point."""
    options: dict[str, Any] = {}
    """Options of the plugin, checked against its own model."""


class UseEstimator(Use):
    """The advantage estimator."""

    use: str = "grpo"
    """Name of the entry point."""


class RewardPolicy(Section):
    """How calls of a reward are run, and what happens when one goes wrong."""

    timeout: PositiveFloat = 30.0
    """Seconds that one call may take before its process is killed."""
    on_error: Literal["fail", "zero", "drop"] = "fail"
    """What an exception, a time-out or a NaN does: stop the run, count as 0, or drop the sample's group."""
    concurrency: PositiveInt = 2
    """Worker processes that score at the same time."""


class UseReward(Use, RewardPolicy):
    """One of the rewards whose weighted sum a sample gets."""

    weight: float = 1.0
    """Factor in the sum."""


class RewardsByMetadata(RewardPolicy):
    """Chooses the reward of each sample by a key of its metadata."""

    key: str = "rm_type"
    """Metadata key that names the reward."""
    allowed: dict[str, dict[str, Any]] = Field(min_length=1)
    """Reward names that may occur, each with its options; all are loaded and checked before the start."""


PluginUse = Annotated[Use, BeforeValidator(_bare_name)]
EstimatorUse = Annotated[UseEstimator, BeforeValidator(_bare_name)]
RewardUse = Annotated[UseReward, BeforeValidator(_bare_name)]


def _rewards_form(value: object) -> str:
    return "<list>" if isinstance(value, list) else "<by metadata>"


# A tag in angle brackets is not a key of the recipe; error places leave it out.
Rewards = Annotated[
    Annotated[list[RewardUse], Tag("<list>")] | Annotated[RewardsByMetadata, Tag("<by metadata>")],
    Discriminator(_rewards_form),
]
