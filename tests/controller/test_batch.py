import torch

from rlcore.config.schema import KL, Algorithm
from rlcore.controller.batch import estimate_advantages, split_updates
from rlcore.data.sample import Sample
from rlcore.protocols import Advantages


class RewardItself:
    needs = frozenset()
    default_loss = "clip"

    def estimate(self, batch):
        return Advantages(batch.rewards_n.repeat_interleave(batch.lengths_n))


def sample(reward, tokens):
    return Sample("p", reward=reward, tokens=[1] * tokens, loss_mask=[1] * tokens)


def test_each_sample_gets_the_advantages_of_its_own_tokens():
    advantages, _ = estimate_advantages(
        [sample(1.0, 2), sample(3.0, 1)], RewardItself(), Algorithm(), None, None
    )
    assert [values.tolist() for values in advantages] == [[1.0, 1.0], [3.0]]


def test_kl_is_taken_from_the_reward_token_by_token():
    algorithm = Algorithm(kl=KL(reward_coefficient=0.5, estimator="k1"))
    log_probs, reference = [torch.tensor([-1.0, -2.0])], [torch.tensor([-2.0, -2.0])]
    (advantages,), _ = estimate_advantages([sample(1.0, 2)], RewardItself(), algorithm, log_probs, reference)
    assert advantages.tolist() == [0.5, 1.0]


def test_normalised_advantages_have_mean_0_over_all_tokens():
    samples = [sample(1.0, 2), sample(3.0, 1)]
    advantages, _ = estimate_advantages(
        samples, RewardItself(), Algorithm(normalize_advantages=True), None, None
    )
    assert abs(torch.cat(advantages).mean()) < 1e-6


def test_a_rollout_is_cut_into_optimizer_steps_and_loses_no_sample():
    assert split_updates([sample(0.0, 1)] * 5, 2) == [[0, 1], [2, 3], [4]]
