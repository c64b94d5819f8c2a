import asyncio
from contextlib import asynccontextmanager

import pytest

from rlcore.config.generation import Rollout as Settings
from rlcore.data.sample import Sample, Status
from rlcore.errors import RlcoreError, fail
from rlcore.protocols import Drop, Keep
from rlcore.rollout.generation import Generator
from rlcore.rollout.rewards import RewardOutcome

SAMPLES = 2


class Source:
    """Prompts without end; remembers how many were asked for."""

    def __init__(self, served=0):
        self.served = served

    def next(self, count):
        groups = range(self.served, self.served + count)
        self.served += count
        return [
            [Sample("", group=group, index=i, prompt_tokens=[70, group]) for i in range(SAMPLES)]
            for group in groups
        ]


class LateFirst:
    """Scores earlier groups later."""

    async def score(self, samples):
        await asyncio.sleep(0.05 / (1 + samples[0].group))
        for sample in samples:
            sample.reward = 1.0
        return [RewardOutcome(1.0) for _ in samples]


class Odd:
    """Keeps groups of odd numbers."""

    def decide(self, group, context):
        return Keep() if group[0].group % 2 else Drop("even", keep_if_short=True)


class Nothing:
    def decide(self, group, context):
        return Drop("never")


@pytest.fixture
def streaming(engine):
    """Opens a stream of 2 groups a step for a coroutine, and closes it."""

    @asynccontextmanager
    async def streaming(source, filters=(), scorer=None, state=(), **settings):
        wanted = {"prompts_per_step": 2, "samples_per_prompt": SAMPLES, "max_response_tokens": 8, **settings}
        generator = Generator(
            engine,
            scorer or LateFirst(),
            engine._tokenizer,
            Settings(mode="async", **wanted),
            stop_token_ids=[256],
            seed=1,
            filters=filters,
        )
        stream = generator.stream(source)
        stream.restore(state)
        try:
            yield stream
        finally:
            await stream.close()

    return streaming


def names(rollout):
    return [group[0].group for group in rollout.groups]


async def new_weights(engine, version):
    async with engine.weight_update(version):
        pass


def test_groups_come_in_the_order_of_asking_whichever_is_ready_first(streaming):
    async def run():
        async with streaming(Source()) as stream:
            stream.allow(4)
            return [names(await stream.take(0)) for _ in range(2)]

    assert asyncio.run(run()) == [[0, 1], [2, 3]]


def test_no_more_is_asked_for_than_is_allowed(streaming):
    async def run():
        source = Source()
        async with streaming(source) as stream:
            stream.allow(3)
            await stream.take(0)
            before = source.served
            stream.allow(3)
            return before, source.served

    assert asyncio.run(run()) == (3, 5)


def test_dropped_groups_are_replaced(streaming):
    async def run():
        async with streaming(Source(), [Odd()]) as stream:
            stream.allow(2)
            return await stream.take(0)

    rollout = asyncio.run(run())
    assert all(name % 2 for name in names(rollout))
    assert rollout.metrics["rollout/groups_dropped/even"] >= 2


def test_a_stream_that_keeps_nothing_ends(streaming):
    async def run(**options):
        async with streaming(Source(), max_response_tokens=1, **options) as stream:
            stream.allow(2)
            await stream.take(0)

    with pytest.raises(RlcoreError, match=r"no group was kept out of \d+ \(\d+ never\)"):
        asyncio.run(run(filters=[Nothing()]))


class Broken:
    """A scorer and a filter that fail."""

    async def score(self, samples):
        raise fail("rewards.0", "it is broken")

    def decide(self, group, context):
        raise fail("filters.0", "it is broken")


@pytest.mark.parametrize("broken", [{"scorer": Broken()}, {"filters": [Broken()]}], ids=["scorer", "filter"])
def test_what_a_scorer_or_a_filter_raises_is_raised_to_who_takes(streaming, broken):
    async def run():
        async with streaming(Source(), **broken) as stream:
            stream.allow(2)
            await stream.take(0)

    with pytest.raises(RlcoreError, match="it is broken"):
        asyncio.run(run())


def test_a_saved_line_goes_on_with_nothing_lost_and_nothing_twice(streaming):
    async def run():
        source = Source()
        async with streaming(source) as stream:
            stream.allow(6)
            taken = [names(await stream.take(0))]
            saved = stream.state()
        assert {one["kept"] for one in saved} <= {True, False}
        async with streaming(Source(source.served), state=saved) as stream:
            stream.allow(6)
            return taken + [names(await stream.take(0)) for _ in range(3)]

    assert asyncio.run(run()) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_sample_that_had_failed_when_the_line_was_saved_is_asked_for_again(streaming):
    group = Source().next(1)[0]
    group[0].status = Status.FAILED
    saved = [{"kept": False, "group": [sample.to_dict() for sample in group]}]

    async def run():
        async with streaming(Source(1), state=saved) as stream:
            stream.allow(2)
            return await stream.take(0)

    rollout = asyncio.run(run())
    assert names(rollout) == [0, 1]
    assert all(sample.tokens for sample in rollout.groups[0])


def test_new_weights_reach_responses_under_way_and_each_token_knows_its_own(streaming, engine):
    async def run():
        async with streaming(Source(), max_response_tokens=100) as stream:
            stream.allow(2)
            for _ in range(10):
                await asyncio.sleep(0)
            await new_weights(engine, 1)
            return await stream.take(1)

    versions = [sample.versions for group in asyncio.run(run()).groups for sample in group]
    assert any(made == sorted(made) and set(made) == {0, 1} for made in versions)


def test_a_group_beyond_the_bound_is_made_anew(streaming, engine):
    async def run():
        async with streaming(Source()) as stream:
            stream.allow(2)
            while not all(one["kept"] for one in stream.state()):
                await asyncio.sleep(0.01)
            await new_weights(engine, 2)
            return await stream.take(2)

    rollout = asyncio.run(run())
    assert names(rollout) == [0, 1]
    assert {made for group in rollout.groups for sample in group for made in sample.versions} == {2}
    assert rollout.metrics["rollout/groups_renewed"] == 2


def test_tokens_of_older_weights_may_carry_no_loss(streaming, engine):
    async def run():
        async with streaming(Source(), mask_offpolicy=True) as stream:
            stream.allow(2)
            while not all(one["kept"] for one in stream.state()):
                await asyncio.sleep(0.01)
            return await stream.take(1)

    assert not any(any(sample.loss_mask) for group in asyncio.run(run()).groups for sample in group)
