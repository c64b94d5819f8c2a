"""A recipe's model in its layout: what model and plugins say of each layer, held against the stages."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlcore.config.checkpoint import read_architecture
from rlcore.config.checks import located
from rlcore.config.load import LoadedRecipe
from rlcore.config.schema import Recipe
from rlcore.errors import Problem, RlcoreError, raise_if_any
from rlcore.layout.plan import Layout, layout_of, layout_problems
from rlcore.layout.rules import model_problems, mtp_problems
from rlcore.protocols import LayoutValidator
from rlcore.registry import Catalog

if TYPE_CHECKING:
    from rlcore.models.spec import ModelSpec


@dataclass(frozen=True)
class Placed:
    """A model and where its layers are."""

    spec: "ModelSpec"
    layout: Layout

    def kinds(self, pipeline_rank: int) -> Counter[str]:
        """Count the layers of a pipeline rank by kind."""
        return Counter(
            self.spec.layers[layer].kind for chunk in self.layout.stages[pipeline_rank] for layer in chunk
        )

    def relative_costs(self, length: int) -> list[float]:
        """FLOPs of each pipeline rank for sequences of `length` tokens, as multiples of their mean.

        A pipeline is as slow as its slowest rank.
        """
        flops = [
            sum(self.spec.layers[layer].flops(length) for chunk in chunks for layer in chunk)
            for chunks in self.layout.stages
        ]
        flops[-1] += flops_after_layers(self.spec, self.layout.mtp_layers, length)
        mean = sum(flops) / len(flops)
        return [each / mean for each in flops]


def flops_after_layers(spec: "ModelSpec", mtp_layers: int, length: int) -> float:
    """FLOPs of MTP layers and of the output layer, which comes once more for each of them: the last rank's."""
    output = 2.0 * length * spec.hidden_size * spec.vocab_size
    return (1 + mtp_layers) * output + sum(layer.flops(length) for layer in spec.mtp_layers[:mtp_layers])


@dataclass(frozen=True)
class Placeable:
    """A model and the layout rules that apply to it: those of its plugin and those that the recipe lists."""

    spec: "ModelSpec"
    validators: tuple[LayoutValidator, ...]

    def place(self, recipe: Recipe) -> Placed:
        """Split the model as the recipe says; raises RlcoreError with every rule broken, at the recipe's keys.

        The rules of plugins are asked about a layout that breaks none of the others.
        """
        starts = self.spec.stage_starts
        misfits = [*model_problems(recipe.parallel, self.spec), *mtp_problems(recipe, self.spec)]
        raise_if_any([*layout_problems(recipe, starts), *misfits])
        layout = layout_of(recipe, starts)
        raise_if_any([problem for validator in self.validators for problem in validator.validate(layout)])
        return Placed(self.spec, layout)


def read_model(recipe: Recipe, catalog: Catalog) -> Placeable:
    """Describe the recipe's model and make its layout rules; raises RlcoreError for what cannot be."""
    model = recipe.model
    architecture = read_architecture(model.checkpoint, model.overrides, catalog)
    name = model.plugin or architecture.hf_config["model_type"]
    key = "model.plugin" if model.plugin else "model.checkpoint"
    spec: ModelSpec = catalog.load("model_spec", name, key).create(architecture.hf_config)
    spec = spec.chosen(model.options)
    chosen = {rule: f"layout_validators.{index}" for index, rule in enumerate(recipe.layout_validators)}
    rules = {name: key, **chosen}
    return Placeable(
        spec, tuple(catalog.load("layout_validator", rule, key).create(spec) for rule, key in rules.items())
    )


def place_loaded(loaded: LoadedRecipe, catalog: Catalog) -> tuple[Placed | None, list[Problem]]:
    """Place the model of a recipe that may have problems already; return it, or what is wrong with its layout.

    Both are empty where the keys that say the layout were refused. Places are files and lines.
    """
    if any(map(loaded.is_broken, ("model", "parallel", "cluster", "layout_validators", "mtp"))):
        return None, []
    try:
        return place_model(loaded.recipe, catalog), []
    except RlcoreError as error:
        return None, [located(loaded, problem) for problem in error.problems]


def place_model(recipe: Recipe, catalog: Catalog) -> Placed:
    """Describe the model and split it; raises RlcoreError with the problems of the step that finds any."""
    return read_model(recipe, catalog).place(recipe)
