"""What rlcore finds of GLM-4: model spec, weight bridge and layout rule, each made when a run asks for it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlcore.errors import Problem
from rlcore.hookspecs import hookimpl
from rlcore_glm4.bridge import glm4_bridge
from rlcore_glm4.spec import Shape, glm4_spec

if TYPE_CHECKING:
    from rlcore.bridge.table import WeightBridge
    from rlcore.layout.plan import Layout
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
    return HeadsSplitEvenly(Shape.of(spec.hf_config))


@dataclass(frozen=True)
class HeadsSplitEvenly:
    """Tensor parallelism must divide what it splits: query heads, MLP, and key heads (or be their multiple)."""

    shape: Shape

    def validate(self, layout: "Layout") -> Sequence[Problem]:
        """Every size that tp does not divide, each with the sizes that would work."""
        tp, shape = layout.tp, self.shape
        works = [n for n in range(1, shape.heads + 1) if not any(_misfits(shape, n))]
        remedy = f"parallel.tp: one of {', '.join(map(str, works))}"
        return [Problem("parallel.tp", problem, remedy) for problem in _misfits(shape, tp)]


def _misfits(shape: Shape, tp: int) -> Iterator[str]:
    if shape.heads % tp:
        yield f"{tp} does not divide the {shape.heads} attention heads"
    if shape.groups % tp and tp % shape.groups:
        yield f"{tp} neither divides the {shape.groups} key-value heads nor is a multiple of them"
    if shape.intermediate % tp:
        yield f"{tp} does not divide the MLP's width {shape.intermediate}"
