import torch
from hypothesis import given
from hypothesis import strategies as st

from rlcore.algorithms.estimators import (
    GrpoOptions,
    ReinforceOptions,
    RlooOptions,
    grpo,
    reinforce,
    rloo,
)
from rlcore.plugin import AdvantageBatch


def batch(rewards, groups, lengths=None):
    lengths = lengths or [1] * len(rewards)
    return AdvantageBatch(
        rewards_n=torch.tensor(rewards),
        group_n=torch.tensor(groups),
        lengths_n=torch.tensor(lengths),
        loss_mask_t=torch.ones(sum(lengths)),
    )


def advantages(estimator, options, *args):
    return estimator(batch=batch(*args), options=options).advantages_t


def test_grpo_divides_by_the_unbiased_standard_deviation_of_the_group():
    found = advantages(grpo, GrpoOptions(), [1.0, 0.0, 0.0, 1.0], [7, 7, 7, 7])
    torch.testing.assert_close(found, torch.tensor([1.0, -1.0, -1.0, 1.0]) * 0.5 / (1 / 3) ** 0.5)


def test_grpo_without_standard_deviation_only_centres():
    options = GrpoOptions(normalize_std=False)
    found = advantages(grpo, options, [1.0, 0.0, 0.0, 1.0], [7, 7, 7, 7])
    torch.testing.assert_close(found, torch.tensor([0.5, -0.5, -0.5, 0.5]))


def test_rloo_takes_the_mean_of_the_others():
    found = advantages(rloo, RlooOptions(), [3.0, 1.0, 2.0], [0, 0, 0])
    torch.testing.assert_close(found, torch.tensor([1.5, -1.5, 0.0]))


def test_reinforce_takes_the_mean_of_the_batch_or_nothing():
    torch.testing.assert_close(
        advantages(reinforce, ReinforceOptions(), [3.0, 1.0], [0, 1]), torch.tensor([1.0, -1.0])
    )
    plain = ReinforceOptions(baseline="none")
    torch.testing.assert_close(advantages(reinforce, plain, [3.0, 1.0], [0, 1]), torch.tensor([3.0, 1.0]))


def test_every_token_gets_its_samples_advantage():
    found = advantages(reinforce, ReinforceOptions(), [3.0, 1.0], [0, 1], [3, 2])
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0]))


def test_a_group_of_one_teaches_nothing():
    for estimator, options in ((grpo, GrpoOptions()), (rloo, RlooOptions())):
        found = advantages(estimator, options, [5.0, 1.0, 0.0], [3, 4, 4])
        assert found[0] == 0
        assert found[1:].all()


@given(st.floats(-1000, 1000, width=32), st.integers(2, 64))
def test_a_group_of_equal_rewards_teaches_nothing(reward, size):
    for estimator, options in ((grpo, GrpoOptions()), (rloo, RlooOptions())):
        assert not advantages(estimator, options, [reward] * size, [0] * size).any()


@given(st.randoms(), st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_groups_are_found_by_number_wherever_their_samples_stand(random, sizes):
    groups = [number for number, size in enumerate(sizes) for _ in range(size)]
    rewards = [random.random() for _ in groups]
    order = random.sample(range(len(groups)), len(groups))
    for estimator, options in ((grpo, GrpoOptions()), (rloo, RlooOptions())):
        tidy = advantages(estimator, options, rewards, groups)
        mixed = advantages(estimator, options, [rewards[i] for i in order], [groups[i] for i in order])
        torch.testing.assert_close(mixed, tidy[order], rtol=1e-4, atol=1e-5)
