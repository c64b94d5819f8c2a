"""A recipe's model in its layout: what the model plugin says of each layer, held against the stages."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlcore.config.checkpoint import read_architecture
from rlcore.config.schema import Recipe
from rlcore.errors import Problem, raise_if_any
from rlcore.layout.plan import Layout, layout_of
from rlcore.registry import Catalog

if TYPE_CHECKING:
    from rlcore.models.spec import ModelSpec


@dataclass(frozen=True)
class Placed:
    """A model and where its layers are."""

    spec: "ModelSpec"
    layout: Layout

    def stage_kinds(self, pipeline_rank: int) -> str:
        """Count the layers of a pipeline rank by kind, such as `3 dense + 5 moe`."""
        layers = [layer for chunk in self.layout.stages[pipeline_rank] for layer in chunk]
        kinds = Counter(self.spec.layers[layer].kind for layer in layers)
        return " + ".join(f"{count} {kind}" for kind, count in kinds.items())


def place_model(recipe: Recipe, catalog: Catalog) -> Placed:
    """Describe the model, split it, and apply the layout rules of its plugin and of the recipe.

    Raises RlcoreError with the problems of the first of these steps that finds any; places are recipe keys.
    """
    model = recipe.model
    architecture = read_architecture(model.checkpoint, model.overrides, catalog)
    name = model.plugin or architecture.hf_config["model_type"]
    key = "model.plugin" if model.plugin else "model.checkpoint"
    spec: ModelSpec = catalog.load("model_spec", name, key).create(architecture.hf_config)
    layout = layout_of(recipe, len(spec.layers))
    rules = {name: key, **dict.fromkeys(recipe.layout_validators, "layout_validators")}
    validators = [catalog.load("layout_validator", rule, key).create(spec) for rule, key in rules.items()]
    problems = [problem for validator in validators for problem in validator.validate(layout)]
    raise_if_any([*_forbidden_starts(spec, layout), *problems])
    return Placed(spec, layout)


def _forbidden_starts(spec: "ModelSpec", layout: Layout) -> Iterator[Problem]:
    for start in layout.stage_starts:
        if not spec.layers[start].may_start_stage:
            allowed = [index for index, layer in enumerate(spec.layers) if layer.may_start_stage]
            message = f"a pipeline stage starts at layer {start}, which needs the one before it"
            yield Problem("parallel.pp", message, f"stages that start at {', '.join(map(str, allowed))}")
