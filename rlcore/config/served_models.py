"""Which of the models that SGLang serves is the policy: it gets the trainer's weights, and makes the samples.

All others keep the weights that they start with.
"""

from collections.abc import Iterator, Sequence
from os.path import expanduser

from rlcore.config.schema import Recipe, ServedModel
from rlcore.errors import Problem

KEY = "rollout.sglang.config.sglang"


def policy_checkpoint(recipe: Recipe) -> str:
    """The path or hub id that the policy's servers start from."""
    return expanduser(recipe.rollout.checkpoint or recipe.model.checkpoint)


def served_checkpoint(recipe: Recipe, model: ServedModel) -> str:
    """The path or hub id that a model's servers start from."""
    return expanduser(model.model_path) if model.model_path else policy_checkpoint(recipe)


def follows_policy(recipe: Recipe, model: ServedModel) -> bool:
    """Whether a model gets the trainer's weights."""
    if model.update_weights is None:
        return served_checkpoint(recipe, model) == policy_checkpoint(recipe)
    return model.update_weights


def model_problems(recipe: Recipe, models: Sequence[ServedModel]) -> Iterator[Problem]:
    """Check that models are started, can be told apart, and that one of them is the policy."""
    if recipe.rollout.sglang.urls:
        message = "servers at urls run already, so that none of these would be started"
        yield Problem("rollout.sglang.config", message, "keep one of the two")
    names = [model.name for model in models]
    for index, name in enumerate(names):
        if name in names[:index]:
            message = f"two models are called {name!r}"
            yield Problem(f"{KEY}.{index}.name", message, "a name of its own for each")
    followers = [index for index, model in enumerate(models) if follows_policy(recipe, model)]
    if not followers:
        message = "no model gets the policy's weights, and one has to make its samples"
        yield Problem(f"{KEY}.0.update_weights", message, "update_weights: true for one of them")
    for index in followers[1:]:
        both = f"{names[followers[0]]!r} and {names[index]!r}"
        message = f"both {both} would get the policy's weights, and only one makes its samples"
        yield Problem(f"{KEY}.{index}.update_weights", message, "update_weights: false")
    for index in followers[:1]:
        checkpoint, policy = served_checkpoint(recipe, models[index]), policy_checkpoint(recipe)
        if checkpoint != policy:
            message = f"servers of the policy start from {policy}, not from {checkpoint}"
            yield Problem(f"{KEY}.{index}.model_path", message, f"rollout: {{checkpoint: {checkpoint}}}")
