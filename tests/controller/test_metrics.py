from rlcore.controller.metrics import evaluation_metrics, rollout_metrics, staleness_metrics, update_metrics
from rlcore.data.sample import Sample, Status


def sample(reward, group=0, tokens=2, status=Status.COMPLETED, **parts):
    return Sample("p", group=group, reward=reward, tokens=[1] * tokens, status=status, reward_parts=parts)


def test_pass_at_k_counts_problems_and_pass_at_1_counts_responses():
    groups = [[sample(1.0), sample(0.0)], [sample(0.0), sample(0.0)]]
    metrics = evaluation_metrics("set", groups)
    assert metrics["eval/set/pass@1"] == 0.25
    assert metrics["eval/set/pass@2"] == 0.5


def test_a_negative_reward_is_no_pass():
    assert evaluation_metrics("set", [[sample(-1.0)]])["eval/set/pass@1"] == 0


def test_a_response_that_no_engine_could_make_is_no_pass_and_is_counted():
    metrics = evaluation_metrics("set", [[sample(1.0)], [sample(None, tokens=0, status=Status.FAILED)]])
    assert (metrics["eval/set/pass@1"], metrics["eval/set/failed"]) == (0.5, 0.5)


def test_every_reward_part_has_its_mean():
    metrics = rollout_metrics([sample(1.0, math=1.0), sample(0.5, math=0.0)])
    assert metrics["reward/math/mean"] == 0.5
    assert metrics["reward/mean"] == 0.75


def test_groups_without_spread_are_counted():
    samples = [sample(1.0, group=0), sample(1.0, group=0), sample(0.0, group=1), sample(1.0, group=1)]
    assert rollout_metrics(samples)["reward/zero_std_groups"] == 0.5


def test_lengths_and_truncation():
    metrics = rollout_metrics([sample(0.0, tokens=2), sample(0.0, tokens=4, status=Status.TRUNCATED)])
    assert metrics["response/length_mean"] == 3
    assert metrics["response/truncated"] == 0.5
    assert metrics["tokens/generated"] == 6


def test_updates_are_averaged_over_those_taken():
    rows = [
        {"loss": 1.0, "logprob_gap/max": 0.5, "skipped": 0.0},
        {"loss": float("nan"), "logprob_gap/max": 2.0, "skipped": 1.0},
        {"loss": 3.0, "logprob_gap/max": 3.0, "skipped": 0.0},
    ]
    assert update_metrics(rows) == {"loss": 2.0, "logprob_gap/max": 0.5, "skipped": 1.0}


def test_an_update_on_tokens_of_older_weights_alone_has_no_gap():
    rows = [{"loss": 1.0, "skipped": 0.0}, {"loss": 3.0, "logprob_gap/max": 2.0, "skipped": 0.0}]
    assert update_metrics(rows) == {"loss": 2.0, "skipped": 0.0}
    assert update_metrics(rows[::-1]) == {"loss": 2.0, "logprob_gap/max": 2.0, "skipped": 0.0}


def test_staleness_counts_versions_between_making_a_token_and_training_it():
    samples = [Sample("", versions=[3, 4]), Sample("", versions=[5, 5])]
    assert staleness_metrics(samples, 5) == {"rollout/staleness_mean": 0.75, "rollout/staleness_max": 2}


def test_a_rollout_without_a_step_taken_still_has_metrics():
    assert update_metrics([{"loss": 1.0, "skipped": 1.0}]) == {"loss": 1.0, "skipped": 1.0}
