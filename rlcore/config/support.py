"""Features that a recipe may ask for and that do not run yet, or not here; `train` refuses them."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from rlcore.config.load import LoadedRecipe
from rlcore.config.schema import Recipe
from rlcore.errors import Problem
from rlcore.registry.requirements import install_command


@dataclass(frozen=True)
class Unbuilt:
    """A key whose value asks for something that does not run, why, and a value that does."""

    key: str
    asked: bool
    feature: str
    instead: str
    reason: str = "is not built yet"


def unbuilt(loaded: LoadedRecipe) -> list[Problem]:
    """Return one problem for each feature that the recipe uses and that does not run."""
    return [
        Problem(loaded.place(one.key), f"{one.feature} {one.reason}", one.instead)
        for one in _features(loaded.recipe)
        if one.asked
    ]


def _features(recipe: Recipe) -> Iterator[Unbuilt]:
    yield from _cluster(recipe)
    yield from _rollout(recipe)
    yield from _training(recipe)


def _cluster(recipe: Recipe) -> Iterator[Unbuilt]:
    cluster = recipe.cluster
    yield Unbuilt(
        "cluster.nodes",
        cluster.nodes > 1 and not cluster.address,
        "training on several nodes",
        "--cluster ray on one of them, once a cluster is up: rlcore cluster up --hostfile FILE",
        "needs a Ray cluster to join",
    )


def _rollout(recipe: Recipe) -> Iterator[Unbuilt]:
    rollout = recipe.rollout
    other = rollout.checkpoint not in (None, recipe.model.checkpoint)
    on_cpu = rollout.engine == "sglang" and not recipe.cluster.gpus_per_node
    yield Unbuilt(
        "rollout.sglang.config",
        bool(rollout.sglang.config) and on_cpu,
        "server groups",
        "leave it out",
        "are for GPUs",
    )
    own = other and rollout.engine == "local"
    yield Unbuilt("rollout.checkpoint", own, "a checkpoint of its own for the local engine", "leave it out")
    yield Unbuilt(
        "rollout.num_gpus",
        rollout.num_gpus > 0 and rollout.engine == "local",
        "the local engine",
        "engine: sglang",
        "generates where the trainer is",
    )


def _training(recipe: Recipe) -> Iterator[Unbuilt]:
    flex = recipe.megatron.get("moe_token_dispatcher_type") == "flex"
    yield Unbuilt(
        "megatron.moe_token_dispatcher_type",
        flex and find_spec("deep_ep") is None,
        "sending tokens to experts by DeepEP",
        f"moe_token_dispatcher_type: alltoall, or {install_command('deep_ep')}",
        "needs the package deep_ep, which is not installed",
    )
