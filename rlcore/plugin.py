"""All that a plugin author imports: the hook marker, decorators for plain functions, and the records.

A decorator turns a function into a plugin, and the function can still be called as it was. Arguments are
passed by name, so a function takes only what it uses; `options`, if it takes them, is annotated with a
pydantic model, against which recipes are checked. A plugin with a lifetime (a pool, a client) implements
the hook itself and returns an object with `close()`: see `rlcore.hookspecs`.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial, update_wrapper
from typing import Any, overload

from pydantic import BaseModel

from rlcore.data.sample import Sample, Status
from rlcore.errors import Problem
from rlcore.hookspecs import hookimpl
from rlcore.protocols import (
    AdvantageBatch,
    AdvantageEstimator,
    Advantages,
    Drop,
    FilterContext,
    Keep,
    LayoutValidator,
    LossBatch,
    LossTerms,
    PolicyLoss,
    Reward,
    RewardResult,
    SamplingFilter,
)
from rlcore.registry.signatures import location

__all__ = [
    "AdvantageBatch",
    "AdvantageEstimator",
    "Advantages",
    "Drop",
    "FilterContext",
    "FunctionPlugin",
    "Keep",
    "LayoutValidator",
    "LossBatch",
    "LossTerms",
    "PolicyLoss",
    "Problem",
    "Reward",
    "RewardResult",
    "Sample",
    "SamplingFilter",
    "Status",
    "advantage_estimator",
    "hookimpl",
    "policy_loss",
    "reward",
    "sampling_filter",
]

Function = Callable[..., Any]
Verdict = float | RewardResult


class FunctionPlugin:
    """A plain function as a plugin: it holds the implementation of one hook; called, it is the function."""

    def __init__(self, function: Function, hook: str, make: Callable[[Function], Any]) -> None:
        update_wrapper(self, function)
        self._function = function

        def factory(options: BaseModel) -> Any:
            takes_options = "options" in inspect.signature(function).parameters
            return make(partial(function, options=options) if takes_options else function)

        # The registry reads the options model and the place of definition off the author's own function.
        noted = getattr(function, "__annotations__", {}).get("options")
        factory.__annotations__ = {} if noted is None else {"options": noted}
        factory.rlcore_definition = function  # type: ignore[attr-defined]
        setattr(self, hook, hookimpl(factory))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)


def reward(function: Callable[..., Verdict | Sequence[Verdict] | Awaitable[Any]]) -> FunctionPlugin:
    """Make a reward of `f(sample)` or `f(samples)`, sync or async, with or without `options`.

    It returns a number or a RewardResult per sample. Async functions of one sample run concurrently.
    """
    _check_parameters(function, ("sample", "samples"))
    return FunctionPlugin(function, "reward", _FunctionReward)


def sampling_filter(function: Callable[..., Keep | Drop]) -> FunctionPlugin:
    """Make a sampling filter of `f(group, context, options)` that returns Keep or Drop."""
    _check_parameters(function, ("group",), ("context",))
    return FunctionPlugin(function, "sampling_filter", _FunctionFilter)


@overload
def advantage_estimator(function: Callable[..., Advantages]) -> FunctionPlugin: ...
@overload
def advantage_estimator(
    *, needs: Iterable[str] = (), default_loss: str = "clip"
) -> Callable[[Callable[..., Advantages]], FunctionPlugin]: ...
def advantage_estimator(
    function: Callable[..., Advantages] | None = None,
    *,
    needs: Iterable[str] = (),
    default_loss: str = "clip",
) -> Any:
    """Make an advantage estimator of `f(batch, options)`; see AdvantageEstimator for `needs`."""
    if function is None:
        return partial(advantage_estimator, needs=needs, default_loss=default_loss)
    _check_parameters(function, ("batch",))
    make = partial(_FunctionEstimator, needs=frozenset(needs), default_loss=default_loss)
    return FunctionPlugin(function, "advantage_estimator", make)


@overload
def policy_loss(function: Callable[..., LossTerms]) -> FunctionPlugin: ...
@overload
def policy_loss(*, needs: Iterable[str]) -> Callable[[Callable[..., LossTerms]], FunctionPlugin]: ...
def policy_loss(function: Callable[..., LossTerms] | None = None, *, needs: Iterable[str] = ()) -> Any:
    """Make a policy loss of `f(batch, options)`; see PolicyLoss for `needs`."""
    if function is None:
        return partial(policy_loss, needs=needs)
    _check_parameters(function, ("batch",))
    return FunctionPlugin(function, "policy_loss", partial(_FunctionLoss, needs=frozenset(needs)))


class _FunctionReward:
    def __init__(self, function: Function) -> None:
        self._function = function
        self._whole_batch = "samples" in inspect.signature(function).parameters

    async def score(self, samples: Sequence[Sample]) -> Sequence[RewardResult]:
        if self._whole_batch:
            verdicts = await _result(self._function(samples=samples))
        else:
            verdicts = await asyncio.gather(*map(self._score_one, samples))
        return [one if isinstance(one, RewardResult) else RewardResult(float(one)) for one in verdicts]

    async def _score_one(self, sample: Sample) -> Verdict:
        verdict: Verdict = await _result(self._function(sample=sample))
        return verdict


class _FunctionFilter:
    def __init__(self, function: Function) -> None:
        self._function = function
        self._takes_context = "context" in inspect.signature(function).parameters

    def decide(self, group: Sequence[Sample], context: FilterContext) -> Keep | Drop:
        extra = {"context": context} if self._takes_context else {}
        decision: Keep | Drop = self._function(group=group, **extra)
        return decision


class _FunctionEstimator:
    def __init__(self, function: Function, needs: frozenset[str], default_loss: str) -> None:
        self._function = function
        self.needs = needs
        self.default_loss = default_loss

    def estimate(self, batch: AdvantageBatch) -> Advantages:
        advantages: Advantages = self._function(batch=batch)
        return advantages


class _FunctionLoss:
    def __init__(self, function: Function, needs: frozenset[str]) -> None:
        self._function = function
        self.needs = needs

    def terms(self, batch: LossBatch) -> LossTerms:
        terms: LossTerms = self._function(batch=batch)
        return terms


async def _result(value: Any) -> Any:
    """What a function returned, or what its coroutine does."""
    return await value if inspect.isawaitable(value) else value


def _check_parameters(function: Function, subjects: Sequence[str], extra: Sequence[str] = ()) -> None:
    """Raise TypeError unless the function takes exactly one of `subjects`, and of the rest what is known."""
    names = list(inspect.signature(function).parameters)
    known = [*subjects, *extra, "options"]
    if unknown := [name for name in names if name not in known]:
        message = f"takes {unknown[0]!r}; what it may take is {', '.join(known)}"
    elif len(set(names) & set(subjects)) != 1:
        message = f"must take {' or '.join(subjects)}"
    else:
        return
    raise TypeError(f"{function.__name__} at {location(function)} {message}")
