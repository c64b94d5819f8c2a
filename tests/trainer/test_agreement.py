import pytest
import torch

from rlcore.data.train_sample import TrainSample
from rlcore.models.context_parallel import ContextSplit
from rlcore.models.selections import add_selections
from rlcore.trainer.agreement import compare, own_selections
from rlcore.trainer.batch import micro_batch
from rlcore.trainer.metrics import Totals

CPU = torch.device("cpu")


def sample(prompt, response, **fields):
    per_token = {"loss_mask": [1.0] * response, "rollout_log_probs": [0.0] * response, **fields}
    return TrainSample(name="s", tokens=[1] * (prompt + response), prompt_length=prompt, **per_token)


def compared(own, engine, log_probs, lengths=None, **fields):
    """Sums and maxima for samples with responses of these lengths, by default one."""
    lengths = lengths or [len(own)]
    parts = [torch.tensor(engine).split(lengths)[i].tolist() for i in range(len(lengths))]
    samples = [sample(2, n, selections=s, **fields) for n, s in zip(lengths, parts, strict=True)]
    batch = micro_batch(samples, range(len(samples)), CPU)
    totals = Totals.of([compare(batch, torch.tensor(log_probs), torch.tensor(own))])
    return totals.sums, totals.maxima


def test_gaps_are_compared_up_to_the_first_difference_in_selections():
    sums, maxima = compared([1, 2, 3, 4], [1, 2, 8, 9], [0.25, 0.5, 4.0, 4.0])
    assert (sums["gap"], sums["compared"]) == (0.75, 2)
    assert maxima["logprob_gap/max"] == 0.5


def test_a_difference_that_stays_is_one_flip_and_one_that_changes_another():
    sums, _ = compared([1, 2, 3, 4, 5], [1, 7, 8, 9, 11], [0.0] * 5)
    assert (sums["flips"], sums["selected"]) == (2, 5)


def test_a_difference_in_the_prompt_is_a_flip_of_the_first_response_token_of_each_sample():
    sums, _ = compared([1, 2, 1, 2], [4, 5, 4, 5], [0.0] * 4, lengths=[2, 2])
    assert (sums["flips"], sums["compared"]) == (2, 0)


def test_tokens_of_older_weights_say_nothing_of_those_that_follow():
    fresh = [False, False, True, True]
    sums, maxima = compared([1, 2, 3, 4], [9, 9, 3, 4], [8.0, 8.0, 0.5, 0.25], fresh=fresh)
    assert (sums["flips"], sums["selected"]) == (0, 2)
    assert maxima["logprob_gap/max"] == 0.5


def test_without_selections_all_tokens_are_compared_and_none_is_a_flip():
    batch = micro_batch([sample(2, 3)], [0], CPU)
    (own,) = own_selections([batch])
    tally = compare(batch, torch.tensor([0.0, 0.5, 1.0]), own)
    assert tally.sums["compared"] == 3
    assert "flips" not in tally.sums


def test_selections_add_up_over_layers_and_over_the_tokens_of_a_sequence():
    batch = micro_batch([sample(1, 3, selections=[0] * 3), sample(2, 1, selections=[0])], [1, 0], CPU)
    for layer in (1, 100):
        add_selections(batch.sequences.shared, layer * torch.tensor([1, 2, 3, 4, 5, 6, 7]))
    (own,) = own_selections([batch])
    assert own.tolist() == [101 * n for n in (1 + 2, 4, 4 + 5, 4 + 5 + 6)]


def test_sums_wrap_around():
    batch = micro_batch([sample(1, 2, selections=[0] * 2)], [0], CPU)
    most = torch.iinfo(torch.int64).max
    add_selections(batch.sequences.shared, torch.tensor([most, 1, 0]))
    assert own_selections([batch])[0].tolist() == [most, -most - 1]


@pytest.mark.parametrize("rank", [0, 1])
def test_tokens_of_other_ranks_add_nothing_here(rank):
    cp = ContextSplit("contiguous", 2, rank)
    batch = micro_batch([sample(2, 4, selections=[0] * 4)], [0], CPU, cp=cp)
    add_selections(batch.sequences.shared, torch.tensor([1, 2, 3]))
    # This process is alone: what the other rank would add is missing.
    expected = [[3, 6, 6, 6], [0, 0, 1, 3]][rank]
    assert own_selections([batch])[0].tolist() == expected
