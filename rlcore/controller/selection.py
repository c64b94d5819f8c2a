"""The plugins that a recipe names, loaded and made: the only place where names become objects."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlcore.config.schema import Recipe, Use
from rlcore.errors import Problem, raise_if_any
from rlcore.protocols import AdvantageEstimator, PolicyLoss, SamplingFilter
from rlcore.registry import Catalog
from rlcore.registry.loading import Plugin

if TYPE_CHECKING:
    from rlcore.bridge.table import WeightBridge
    from rlcore.models.spec import ModelSpec

# What the loop computes for estimators and losses that need it; rollout log-probs come with every sample.
_COMPUTED = frozenset({"log_probs", "ref_log_probs", "rollout_log_probs"})


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
    own = {kind: catalog.load(kind, name, "model.plugin") for kind in kinds}
    rules = [catalog.load("layout_validator", rule, "layout_validators") for rule in recipe.layout_validators]
    return ModelPlugins(spec, own["weight_bridge"].create(spec), (*own.values(), *rules))


@dataclass(frozen=True)
class AlgorithmPlugins:
    """Estimator, loss and filters of a recipe, with their options bound."""

    estimator: AdvantageEstimator
    loss: PolicyLoss
    filters: tuple[SamplingFilter, ...]
    plugins: tuple[Plugin, ...]

    def close(self) -> None:
        """End what has a lifetime: every one of them that has a `close()`."""
        for made in (self.estimator, self.loss, *self.filters):
            if close := getattr(made, "close", None):
                close()


def select_algorithm(catalog: Catalog, recipe: Recipe) -> AlgorithmPlugins:
    """Make the estimator, the loss (the estimator's own unless the recipe names one) and the filters.

    Raises RlcoreError for a plugin that cannot be made, and for one that needs what is not computed.
    """
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
    loss = _make(loss_plugin, loss_use, "loss")
    raise_if_any([*_unmet_needs("advantage", estimator), *_unmet_needs("loss", loss)])
    return AlgorithmPlugins(
        estimator,
        loss,
        tuple(filters),
        (estimator_plugin, loss_plugin, *filter_plugins),
    )


def _make(plugin: Plugin, use: Use, place: str) -> Any:
    return plugin.create(plugin.parse_options(use.options, f"{place}.options"))


def _unmet_needs(place: str, plugin: AdvantageEstimator | PolicyLoss) -> list[Problem]:
    """A plugin that was given None for what it needs would fail in the first step, or train on nonsense."""
    return [
        Problem(
            place,
            f"it needs {need!r}, which is not built yet",
            f"a plugin content with {', '.join(sorted(_COMPUTED))}",
        )
        for need in sorted(plugin.needs - _COMPUTED)
    ]
