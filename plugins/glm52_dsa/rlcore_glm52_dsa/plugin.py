"""What rlcore finds of GLM-5 and GLM-5.2: model spec, weight bridge and layout rule, made when a run asks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlcore.hookspecs import hookimpl
from rlcore.layout.rules import NoFurtherRules
from rlcore_glm52_dsa.bridge import dsa_bridge
from rlcore_glm52_dsa.spec import dsa_spec

if TYPE_CHECKING:
    from rlcore.bridge.table import WeightBridge
    from rlcore.models.spec import ModelSpec
    from rlcore.protocols import LayoutValidator


@hookimpl
def model_spec(hf_config: Mapping[str, Any]) -> "ModelSpec":
    return dsa_spec(hf_config)


@hookimpl
def weight_bridge(spec: "ModelSpec") -> "WeightBridge":
    return dsa_bridge(spec)


@hookimpl
def layout_validator(spec: "ModelSpec") -> "LayoutValidator":
    return NoFurtherRules()
