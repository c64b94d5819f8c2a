"""The plugins that a recipe names, loaded and made: the only place where names become objects."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlcore.config.schema import Recipe, Use
from rlcore.protocols import AdvantageEstimator, PolicyLoss, SamplingFilter
from rlcore.registry import Catalog
from rlcore.registry.loading import Plugin

if TYPE_CHECKING:
    from rlcore.bridge.table import WeightBridge
    from rlcore.models.spec import ModelSpec


@dataclass(frozen=True)
class ModelPlugins:
    """What a model plugin gives: the description of the checkpoint, and the way of its tensors."""

    spec: "ModelSpec"
    bridge: "WeightBridge"
    plugins: tuple[Plugin, ...]


def select_model(catalog: Catalog, recipe: Recipe, spec: "ModelSpec") -> ModelPlugins:
    """Make the bridge of a model whose spec is known, and name every plugin that describes it."""
    name = recipe.model.plugin or spec.model_type
    kinds = ("model_spec", "weight_bridge", "layout_validator")
    plugins = {kind: catalog.load(kind, name, "model.plugin") for kind in kinds}
    return ModelPlugins(spec, plugins["weight_bridge"].create(spec), tuple(plugins.values()))


@dataclass(frozen=True)
class AlgorithmPlugins:
    """Estimator, loss and filters of a recipe, with their options bound."""

    estimator: AdvantageEstimator
    loss: PolicyLoss
    filters: tuple[SamplingFilter, ...]
    plugins: tuple[Plugin, ...]


def select_algorithm(catalog: Catalog, recipe: Recipe) -> AlgorithmPlugins:
    """Make the estimator, the loss (the estimator's own unless the recipe names one) and the filters."""
    estimator_plugin = catalog.load("advantage_estimator", recipe.advantage.use, "advantage")
    estimator = _make(estimator_plugin, recipe.advantage, "advantage")
    loss_use = recipe.loss or Use(use=estimator.default_loss)
    loss_plugin = catalog.load("policy_loss", loss_use.use, "loss")
    filter_plugins = [
        catalog.load("sampling_filter", use.use, f"filters.{i}") for i, use in enumerate(recipe.filters)
    ]
    filters = [
        _make(plugin, use, f"filters.{i}")
        for i, (plugin, use) in enumerate(zip(filter_plugins, recipe.filters, strict=True))
    ]
    return AlgorithmPlugins(
        estimator,
        _make(loss_plugin, loss_use, "loss"),
        tuple(filters),
        (estimator_plugin, loss_plugin, *filter_plugins),
    )


def _make(plugin: Plugin, use: Use, place: str) -> Any:
    return plugin.create(plugin.parse_options(use.options, f"{place}.options"))
