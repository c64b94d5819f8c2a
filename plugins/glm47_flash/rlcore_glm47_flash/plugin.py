"""What rlcore finds of GLM-4.7-Flash: model spec, weight bridge and layout rule, made when a run asks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlcore.hookspecs import hookimpl
from rlcore.layout.rules import NoFurtherRules
from rlcore_glm47_flash.bridge import flash_bridge
from rlcore_glm47_flash.spec import flash_spec

if TYPE_CHECKING:
    from rlcore.bridge.table import WeightBridge
    from rlcore.models.spec import ModelSpec
    from rlcore.protocols import LayoutValidator


@hookimpl
def model_spec(hf_config: Mapping[str, Any]) -> "ModelSpec":
    return flash_spec(hf_config)


@hookimpl
def weight_bridge(spec: "ModelSpec") -> "WeightBridge":
    return flash_bridge(spec)


@hookimpl
def layout_validator(spec: "ModelSpec") -> "LayoutValidator":
    return NoFurtherRules()
