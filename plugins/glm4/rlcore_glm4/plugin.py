"""What rlcore finds of GLM-4: model spec, weight bridge and layout rule, each made when a run asks for it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlcore.hookspecs import hookimpl
from rlcore.layout.rules import NoFurtherRules
from rlcore_glm4.bridge import glm4_bridge
from rlcore_glm4.spec import glm4_spec

if TYPE_CHECKING:
    from rlcore.bridge.table import WeightBridge
    from rlcore.models.spec import ModelSpec
    from rlcore.protocols import LayoutValidator


@hookimpl
def model_spec(hf_config: Mapping[str, Any]) -> "ModelSpec":
    return glm4_spec(hf_config)


@hookimpl
def weight_bridge(spec: "ModelSpec") -> "WeightBridge":
    return glm4_bridge(spec)


@hookimpl
def layout_validator(spec: "ModelSpec") -> "LayoutValidator":
    return NoFurtherRules()
