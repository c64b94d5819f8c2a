import torch

from rlcore.algorithms.logprob import TokenScores
from rlcore.algorithms.losses import ClipOptions, clip
from rlcore.config.schema import Algorithm
from rlcore.config.training import KL, ImportanceSampling
from rlcore.data.train_sample import TrainSample
from rlcore.trainer.batch import micro_batch
from rlcore.trainer.objectives import PolicyObjective, SftObjective

SCORES = TokenScores(torch.tensor([-1.0, -2.0]), torch.tensor([0.5, 0.25]))


def batch(**fields):
    sample = TrainSample(name="a", tokens=[1, 2, 3], prompt_length=1, loss_mask=[1, 1], **fields)
    return micro_batch([sample], [0], torch.device("cpu"))


def test_supervised_loss_is_the_negative_log_likelihood():
    assert SftObjective().token_loss(SCORES, batch()).loss_t.tolist() == [1.0, 2.0]


def test_entropy_is_rewarded_and_distance_to_the_reference_costs():
    algorithm = Algorithm(entropy_coefficient=0.1, kl=KL(loss_coefficient=2.0, estimator="k1"))
    objective = PolicyObjective(clip.policy_loss(ClipOptions()), algorithm)
    loss = objective.token_loss(SCORES, batch(advantages=[1.0, -1.0], ref_log_probs=[-1.5, -2.0]))
    torch.testing.assert_close(loss.loss_t, torch.tensor([-1.0 - 0.05 + 1.0, 1.0 - 0.025]))
    torch.testing.assert_close(loss.metrics_t["kl"], torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(loss.metrics_t["pg_loss"], torch.tensor([-1.0, 1.0]))
    assert objective.entropy == "gradient"


def test_the_policy_loss_alone_is_weighted_by_truncated_importance():
    sampling = ImportanceSampling(enabled=True, low=0.5, high=2.0)
    algorithm = Algorithm(entropy_coefficient=0.1, importance_sampling=sampling)
    objective = PolicyObjective(clip.policy_loss(ClipOptions()), algorithm)
    fields = {"advantages": [1.0, -1.0], "rollout_log_probs": [-1.5, -5.0]}
    loss = objective.token_loss(SCORES, batch(**fields))
    weights = torch.tensor([0.5, 3.0]).exp().clamp(0.5, 2.0)
    torch.testing.assert_close(loss.metrics_t["pg_loss"], torch.tensor([-1.0, 1.0]) * weights)
    torch.testing.assert_close(loss.loss_t, loss.metrics_t["pg_loss"] - 0.1 * SCORES.entropy_t)


def test_entropy_is_only_measured_when_it_has_no_weight():
    assert PolicyObjective(clip.policy_loss(ClipOptions()), Algorithm()).entropy == "value"
