import asyncio
import random

import pytest

from rlcore.config.generation import Rollout as Settings
from rlcore.data.sample import Sample, Status
from rlcore.errors import RlcoreError, fail
from rlcore.protocols import Drop, Keep
from rlcore.rollout.generation import Generator
from rlcore.rollout.local import LocalEngine
from rlcore.rollout.rewards import RewardOutcome

END = 256


class Source:
    """Prompts without end, or up to `limit`; remembers what was put back and serves it first."""

    def __init__(self, limit=10**6, prompt=(70, 71)):
        self.limit, self.prompt, self.served, self.returned = limit, prompt, 0, []

    def next(self, count):
        groups, self.returned = self.returned[:count], self.returned[count:]
        while len(groups) < count and self.served < self.limit:
            tokens = [*self.prompt, self.served % 200]
            groups.append(
                [Sample("", group=self.served, index=i, prompt_tokens=list(tokens)) for i in range(2)]
            )
            self.served += 1
        return groups

    def put_back(self, groups):
        self.returned += groups


class LengthReward:
    """Rewards even response lengths, after a while that nobody can foresee; rejects groups of `broken`."""

    def __init__(self, delay=0.0, broken=()):
        self.delay, self.broken = delay, broken

    async def score(self, samples):
        await asyncio.sleep(random.random() * self.delay)
        for sample in samples:
            sample.reward = float(len(sample.tokens) % 2 == 0)
        return [RewardOutcome(sample.reward, drop=sample.group in self.broken) for sample in samples]


class Spread:
    """Keeps groups whose rewards differ; remembers in which order it saw them and what it was told."""

    def __init__(self, keep_if_short=False):
        self.keep_if_short, self.seen, self.contexts = keep_if_short, [], []

    def decide(self, group, context):
        self.seen.append(group[0].group)
        self.contexts.append(context)
        if len({sample.reward for sample in group}) > 1:
            return Keep()
        return Drop("equal", keep_if_short=self.keep_if_short)


class Never:
    def __init__(self, keep_if_short):
        self.keep_if_short = keep_if_short

    def decide(self, group, context):
        return Drop("never", keep_if_short=self.keep_if_short)


@pytest.fixture
def make(engine):
    """Makes a generator of 3 groups of 2 responses, each up to 24 tokens."""

    def make(scorer=None, filters=(), engine=engine, max_context_tokens=None, **settings):
        wanted = {"prompts_per_step": 3, "samples_per_prompt": 2, "max_response_tokens": 24, **settings}
        return Generator(
            engine,
            scorer or LengthReward(),
            engine._tokenizer,
            Settings(**wanted),
            stop_token_ids=(END, *range(0, 256, 16)),
            seed=11,
            max_context_tokens=max_context_tokens,
            filters=filters,
        )

    return make


def roll(generator, source, **options):
    return asyncio.run(generator.rollout(source, **options))


def names(groups):
    return [group[0].group for group in groups]


def test_a_rollout_is_groups_of_finished_scored_samples_in_the_order_asked_for(make, engine):
    rollout = roll(make(), Source())
    assert names(rollout.groups) == [0, 1, 2]
    for sample in (sample for group in rollout.groups for sample in group):
        ended = sample.tokens[-1] % 16 == 0
        assert sample.status == (Status.COMPLETED if ended else Status.TRUNCATED)
        assert sample.response == engine._tokenizer.decode(sample.tokens[: -1 if ended else None])
        assert len(sample.tokens) == len(sample.log_probs) == len(sample.versions) == sum(sample.loss_mask)
        assert sample.reward in (0.0, 1.0)


def test_samples_of_a_group_differ(make):
    groups = roll(make(max_response_tokens=24), Source()).groups
    assert all(first.tokens != second.tokens for first, second in groups)


def test_prompt_and_response_fit_the_context_together(make):
    groups = roll(make(max_context_tokens=8), Source()).groups
    assert max(sample.length for group in groups for sample in group) == 8


def test_filters_drop_and_others_fill_up(make):
    source, spread = Source(), Spread()
    rollout = roll(make(filters=[spread]), source, step=5)
    assert all(group[0].reward != group[1].reward for group in rollout.groups)
    assert names(rollout.groups) == sorted(names(rollout.groups))
    assert rollout.metrics["rollout/groups_dropped/equal"] == len(spread.seen) - 3
    assert rollout.metrics["rollout/groups_asked"] == source.served
    assert {(context.step, context.wanted) for context in spread.contexts} == {(5, 3)}


def test_what_filters_mask_out_carries_no_loss(make):
    class FirstOnly:
        def decide(self, group, context):
            return Keep(mask_out=frozenset({1}))

    for first, second in roll(make(filters=[FirstOnly()]), Source()).groups:
        assert all(first.loss_mask)
        assert not any(second.loss_mask)


@pytest.mark.parametrize("options", [{}, {"over_sampling_prompts": 6, "partial": True}])
def test_slow_rewards_change_nothing(make, checkpoint, options):
    """Whatever the clock does, the same groups come out, token for token, and the same go back."""

    def run(delay):
        source, spread = Source(), Spread()
        generator = make(LengthReward(delay), [spread], LocalEngine(checkpoint, concurrency=4), **options)
        rollouts = [roll(generator, source) for _ in range(2)]
        kept = [sample.to_dict() for rollout in rollouts for group in rollout.groups for sample in group]
        return kept, spread.seen, [sample.to_dict() for group in source.returned for sample in group]

    assert run(0.0) == run(0.03)


def test_enough_groups_end_the_rest(make, engine):
    rollout = roll(make(over_sampling_prompts=8), Source())
    assert len(rollout.groups) == 3
    assert rollout.metrics["rollout/groups_cut_short"] == 5
    assert asyncio.run(engine.health()).running == 0


def test_cut_responses_go_on_in_the_next_rollout(make, engine, checkpoint):
    source = Source()
    generator = make(over_sampling_prompts=8, partial=True)
    first = roll(generator, source)
    begun = {
        (sample.group, sample.index): list(sample.tokens)
        for group in source.returned
        for sample in group
        if sample.status is Status.ABORTED and sample.tokens
    }
    second = roll(generator, source)
    whole = roll(make(engine=LocalEngine(checkpoint), prompts_per_step=8), Source()).groups
    expected = {(sample.group, sample.index): sample.tokens for group in whole for sample in group}
    done = [sample for group in (*first.groups, *second.groups) for sample in group]
    assert begun
    assert len({(sample.group, sample.index) for sample in done}) == len(done)
    for sample in done:
        assert sample.tokens == expected.get((sample.group, sample.index), sample.tokens)


def test_tokens_of_older_weights_may_carry_no_loss(make, engine):
    source = Source()
    generator = make(over_sampling_prompts=8, partial=True, mask_offpolicy=True)
    roll(generator, source)

    async def update():
        async with engine.weight_update(1):
            pass

    asyncio.run(update())
    samples = [sample for group in roll(generator, source).groups for sample in group]
    assert any(0 in sample.versions for sample in samples)
    assert all(sample.loss_mask == sample.versions for sample in samples)


def test_a_group_whose_reward_fails_is_replaced(make):
    rollout = roll(make(LengthReward(broken={1})), Source())
    assert names(rollout.groups) == [0, 2, 3]
    assert rollout.metrics["rollout/groups_dropped/reward_error"] == 1


def test_a_bad_sample_takes_only_its_group_with_it(make):
    source = Source()
    bad = [Sample("", group=100, index=i, prompt_tokens=[5, 5000]) for i in range(2)]
    source.put_back([bad])
    rollout = roll(make(), source)
    assert names(rollout.groups) == [0, 1, 2]
    assert [sample.status for sample in bad] == [Status.FAILED] * 2
    assert rollout.metrics["rollout/groups_dropped/failed"] == 1


def test_a_cut_group_with_a_failed_sample_has_no_next_rollout(make):
    source = Source()
    torn = [Sample("", group=100, index=i, prompt_tokens=[5, token]) for i, token in enumerate((5000, 7))]
    source.put_back([*source.next(4), torn])
    roll(make(prompts_per_step=2, over_sampling_prompts=5, partial=True), source)
    assert [sample.status for sample in torn] == [Status.FAILED, Status.ABORTED]
    assert source.returned
    assert torn not in source.returned


def test_when_nothing_works_the_first_cause_is_told(make):
    with pytest.raises(RlcoreError, match=r"no response could be made: .*token 5000 is outside the vocabulary"):
        roll(make(), Source(prompt=[5000]))


@pytest.mark.parametrize("filters", [(), (Spread(),)])
def test_an_error_of_the_scorer_ends_the_rollout_and_leaves_the_engine_free(make, engine, filters):
    class Broken:
        async def score(self, samples):
            raise fail("rewards.0", "it is broken")

    async def both():
        with pytest.raises(RlcoreError, match="it is broken"):
            await make(Broken(), filters).rollout(Source())
        await asyncio.sleep(0)
        return await make().rollout(Source())

    assert len(asyncio.run(both()).groups) == 3


def test_dropped_groups_return_when_prompts_run_out(make):
    rollout = roll(make(filters=[Never(keep_if_short=True)]), Source(limit=5))
    assert len(rollout.groups) == 3
    with pytest.raises(RlcoreError, match=r"no group was kept out of 5 \(5 never\)"):
        roll(make(filters=[Never(keep_if_short=False)]), Source(limit=5))


def test_filters_that_are_never_content_do_not_run_forever(make):
    with pytest.raises(RlcoreError, match="no group was kept"):
        roll(make(filters=[Never(keep_if_short=False)], max_response_tokens=1), Source())


def test_progress_counts_samples_and_tokens(make):
    seen = []
    rollout = roll(make(), Source(), on_progress=lambda *numbers: seen.append(numbers))
    tokens = sum(len(sample.tokens) for group in rollout.groups for sample in group)
    assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1] == (6, 6, tokens)


def test_evaluation_keeps_every_group(make):
    groups = Source().next(4)
    settings = Settings(max_response_tokens=6, temperature=0)
    done = asyncio.run(make(filters=[Never(False)]).generate(groups, settings))
    assert done is groups
    assert all(sample.reward is not None and len(sample.tokens) <= 6 for group in done for sample in group)
    assert all(first.tokens == second.tokens for first, second in done)
