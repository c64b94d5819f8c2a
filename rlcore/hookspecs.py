"""The six hooks of rlcore, and the policy loss that follows the same rules.

A hook is a factory: rlcore calls it once at set-up, and the object that it returns does the work through
a small Protocol (`rlcore.protocols`). An entry point in the group `rlcore.<hook>s` makes an implementation
known; its name is what a recipe writes; its value is the module or object that holds the `@hookimpl`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pydantic import BaseModel

    from rlcore.bridge.table import WeightBridge
    from rlcore.models.spec import ModelSpec
    from rlcore.protocols import AdvantageEstimator, LayoutValidator, PolicyLoss, Reward, SamplingFilter

hookspec = pluggy.HookspecMarker("rlcore")
hookimpl = pluggy.HookimplMarker("rlcore")


@hookspec(firstresult=True)
def model_spec(hf_config: Mapping[str, Any]) -> "ModelSpec":  # type: ignore[empty-body]
    """Describe a model family to Megatron, from the checkpoint's config.json as read from disk."""


@hookspec(firstresult=True)
def weight_bridge(spec: "ModelSpec") -> "WeightBridge":  # type: ignore[empty-body]
    """Give the table that maps the checkpoint's tensors to Megatron's parameters and back."""


@hookspec(firstresult=True)
def layout_validator(spec: "ModelSpec") -> "LayoutValidator":  # type: ignore[empty-body]
    """Check a whole parallel layout against the model's own rules."""


@hookspec(firstresult=True)
def reward(options: "BaseModel") -> "Reward":  # type: ignore[empty-body]
    """Score finished samples."""


@hookspec(firstresult=True)
def sampling_filter(options: "BaseModel") -> "SamplingFilter":  # type: ignore[empty-body]
    """Decide which groups of samples a rollout keeps."""


@hookspec(firstresult=True)
def advantage_estimator(options: "BaseModel") -> "AdvantageEstimator":  # type: ignore[empty-body]
    """Turn rewards into advantages."""


@hookspec(firstresult=True)
def policy_loss(options: "BaseModel") -> "PolicyLoss":  # type: ignore[empty-body]
    """Compute the per-token surrogate that the optimizer minimises (group `rlcore.losses`)."""
