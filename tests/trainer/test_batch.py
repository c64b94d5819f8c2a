import torch

from rlcore.data.train_sample import TrainSample
from rlcore.models.context_parallel import ContextSplit
from rlcore.trainer.batch import micro_batch

CPU = torch.device("cpu")
SAMPLES = [
    TrainSample(name="a", tokens=[1, 2, 3], prompt_length=2, loss_mask=[1], advantages=[0.5]),
    TrainSample(name="b", tokens=[4, 5, 6, 7], prompt_length=1, loss_mask=[1, 0, 1], advantages=[1, 2, 3]),
]


def test_each_response_token_is_predicted_from_the_place_before_it():
    batch = micro_batch(SAMPLES, [1, 0], CPU)
    assert batch.indices == (1, 0)
    assert batch.tokens_s.tolist() == [4, 5, 6, 7, 1, 2, 3]
    assert batch.predict_l.tolist() == [0, 1, 2, 5]
    assert batch.targets_t.tolist() == [5, 6, 7, 3]
    assert batch.sample_t.tolist() == [0, 0, 0, 1]
    assert batch.advantages_t.tolist() == [1, 2, 3, 0.5]
    assert batch.loss_mask_t.tolist() == [1, 0, 1, 1]


def test_positions_start_anew_with_each_sample():
    batch = micro_batch(SAMPLES, [1, 0], CPU)
    assert batch.sequences.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch.sequences.max_seqlen_q == 4


def test_weights_follow_their_samples():
    weights = [torch.tensor([0.5]), torch.tensor([0.1, 0.0, 0.4])]
    batch = micro_batch(SAMPLES, [1, 0], CPU, weights)
    assert batch.weight_t.tolist() == [*weights[1].tolist(), *weights[0].tolist()]


def test_a_field_that_some_samples_lack_is_absent():
    lacking = TrainSample(name="c", tokens=[1, 2], prompt_length=1, loss_mask=[1])
    batch = micro_batch([*SAMPLES, lacking], [0, 1, 2], CPU)
    assert batch.advantages_t is None


def test_a_rank_has_its_share_of_tokens_and_whole_fields():
    first, second = (
        micro_batch(SAMPLES, [1, 0], CPU, cp=ContextSplit("contiguous", 2, rank)) for rank in (0, 1)
    )
    assert (first.tokens_s.tolist(), second.tokens_s.tolist()) == ([4, 5, 1, 2], [6, 7, 3, 0])
    assert (first.local_l.tolist(), second.local_l.tolist()) == ([0, 1, 3], [2])
    assert (first.predict_l.tolist(), second.predict_l.tolist()) == ([0, 1, 3], [0])
    assert (first.local_targets_l.tolist(), second.local_targets_l.tolist()) == ([5, 6, 3], [7])
    assert first.targets_t.tolist() == second.targets_t.tolist() == [5, 6, 7, 3]
    assert first.advantages_t.tolist() == second.advantages_t.tolist() == [1, 2, 3, 0.5]


def test_padding_comes_last_and_no_response_token_is_in_it():
    padded, plain = (
        micro_batch(SAMPLES, [1, 0], CPU, cp=ContextSplit(multiple=8)),
        micro_batch(SAMPLES, [1, 0], CPU),
    )
    assert padded.tokens_s.tolist() == [*plain.tokens_s.tolist(), 0]
    assert padded.sequences.lengths == (4, 3, 1)
    assert padded.predict_l.tolist() == plain.predict_l.tolist()
    assert padded.targets_t.tolist() == plain.targets_t.tolist()


def test_padding_fills_up_to_the_tokens_asked_for():
    longer = micro_batch(SAMPLES, [1, 0], CPU, cp=ContextSplit(multiple=4), tokens=9)
    assert longer.tokens_s.tolist() == [4, 5, 6, 7, 1, 2, 3, 0, 0, 0, 0, 0]


def test_each_rank_knows_which_of_its_tokens_are_padding():
    splits = [ContextSplit("contiguous", 2, rank) for rank in (0, 1)]
    first, second = (micro_batch(SAMPLES, [1, 0], CPU, cp=cp).sequences.padding_1s for cp in splits)
    assert (first.tolist(), second.tolist()) == ([[False] * 4], [[False, False, False, True]])
    assert micro_batch(SAMPLES, [1, 0], CPU).sequences.padding_1s is None


SIBLINGS = [
    TrainSample(name=name, tokens=[1, 2, 3, *response], prompt_length=3, loss_mask=[1] * len(response))
    for name, response in (("a", [4]), ("b", [5, 6]))
]


def test_samples_of_a_prompt_share_all_of_it_but_its_last_token():
    batch = micro_batch(SIBLINGS, [0, 1], CPU, share_prompts=True)
    assert batch.tokens_s.tolist() == [1, 2, 3, 4, 3, 5, 6]
    assert batch.sequences.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    assert batch.predict_l.tolist() == [2, 4, 5]
    assert batch.targets_t.tolist() == [4, 5, 6]


def test_rows_of_shared_prompts_are_padded():
    batch = micro_batch(SIBLINGS, [0, 1], CPU, cp=ContextSplit(multiple=4), share_prompts=True)
    assert batch.tokens_s.tolist() == [1, 2, 3, 4, 3, 5, 6, 0]
    assert batch.sequences.padding_1s.tolist() == [[False] * 7 + [True]]
