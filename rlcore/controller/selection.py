"""The plugins that a recipe names, loaded and made: the only place where names become objects."""

from collections.abc import Mapping
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


def select_model(catalog: Catalog, recipe: Recipe, hf_config: Mapping[str, Any]) -> ModelPlugins:
    """Make spec and bridge for a checkpoint's config.json (overrides already applied)."""
    name = recipe.model.plugin or str(hf_config["model_type"])
    spec_plugin = catalog.load("model_spec", name, "model.plugin")
    bridge_plugin = catalog.load("weight_bridge", name, "model.plugin")
    spec = spec_plugin.create(hf_config)
    return ModelPlugins(spec, bridge_plugin.create(spec), (spec_plugin, bridge_plugin))


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
