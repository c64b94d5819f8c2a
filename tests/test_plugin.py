"""The decorators of `rlcore.plugin`: a plain function becomes a plugin and stays a function."""

import asyncio

import pytest
from pydantic import BaseModel

from rlcore.plugin import (
    Drop,
    FilterContext,
    Keep,
    RewardResult,
    Sample,
    advantage_estimator,
    policy_loss,
    reward,
    sampling_filter,
)
from rlcore.protocols import AdvantageEstimator, PolicyLoss, Reward, SamplingFilter

SAMPLES = [Sample(prompt="", response=text) for text in ("a", "bb", "ccc")]


class Options(BaseModel):
    factor: float = 2.0


def scores(plugin, options=None):
    made = plugin.reward(options=options)
    assert isinstance(made, Reward)
    return [one.value for one in asyncio.run(made.score(SAMPLES))]


def test_a_reward_of_one_sample():
    @reward
    def length(sample):
        return len(sample.response)

    assert scores(length) == [1.0, 2.0, 3.0]


def test_a_reward_of_all_samples_with_options():
    @reward
    def length(samples, options: Options):
        return [RewardResult(options.factor * len(one.response)) for one in samples]

    assert scores(length, Options(factor=10)) == [10.0, 20.0, 30.0]


def test_async_rewards_of_one_sample_run_concurrently():
    met = []

    @reward
    async def meets(sample):
        met.append(sample.response)
        while len(met) < len(SAMPLES):
            await asyncio.sleep(0)
        return 1.0

    assert scores(meets) == [1.0, 1.0, 1.0]


def test_the_function_can_still_be_called():
    @reward
    def length(sample, options: Options):
        """Longer is better."""
        return options.factor * len(sample.response)

    assert length(SAMPLES[1], Options()) == 4.0
    assert length.__doc__ == "Longer is better."


def test_a_filter_may_leave_out_what_it_does_not_use():
    @sampling_filter
    def pairs(group):
        return Keep() if len(group) == 2 else Drop("not a pair")

    made = pairs.sampling_filter(options=None)
    assert isinstance(made, SamplingFilter)
    context = FilterContext(step=0, wanted=1, kept=0, in_flight=0, version=0)
    assert made.decide(SAMPLES, context) == Drop("not a pair")


def test_a_filter_sees_the_context_and_its_options():
    @sampling_filter
    def early(group, context, options: Options):
        return Keep() if context.step < options.factor else Drop("late")

    made = early.sampling_filter(options=Options())
    assert made.decide([], FilterContext(step=3, wanted=1, kept=0, in_flight=0, version=0)) == Drop("late")


def test_an_estimator_carries_its_needs_and_its_loss():
    @advantage_estimator(needs={"values"}, default_loss="gspo")
    def estimate(batch):
        return batch

    made = estimate.advantage_estimator(options=None)
    assert isinstance(made, AdvantageEstimator)
    assert (made.needs, made.default_loss, made.estimate("batch")) == (frozenset({"values"}), "gspo", "batch")


def test_a_loss_needs_no_brackets():
    @policy_loss
    def surrogate(batch, options: Options):
        return (batch, options.factor)

    made = surrogate.policy_loss(options=Options())
    assert isinstance(made, PolicyLoss)
    assert (made.needs, made.terms("batch")) == (frozenset(), ("batch", 2.0))


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda sample, extra: 0.0, "takes 'extra'; what it may take is sample, samples, options"),
        (lambda options: 0.0, "must take sample or samples"),
        (lambda sample, samples: 0.0, "must take sample or samples"),
    ],
)
def test_a_function_of_the_wrong_shape_is_named_with_file_and_line(function, complaint):
    with pytest.raises(TypeError, match=r"at .*test_plugin.py:\d+ ") as error:
        reward(function)
    assert complaint in str(error.value)
