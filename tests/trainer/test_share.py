"""How samples are spread cannot change what is learnt. About 5 s."""

from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core import parallel_state

from rlcore.algorithms.losses import ClipOptions, clip
from rlcore.config.schema import Algorithm, Optimizer
from rlcore.models.context_parallel import ContextSplit
from rlcore.trainer.objectives import PolicyObjective
from rlcore.trainer.share import share_of

LENGTHS = [(5, 9), (3, 17), (8, 4), (2, 30), (6, 12), (4, 1), (1, 22)]
TOKENS = sum(map(sum, LENGTHS))
CPU = torch.device("cpu")


@pytest.fixture
def as_rank(monkeypatch):
    """Let this process pass for one of several data-parallel ranks."""

    def pretend(rank, size):
        monkeypatch.setattr(parallel_state, "get_data_parallel_rank", lambda: rank)
        monkeypatch.setattr(parallel_state, "get_data_parallel_world_size", lambda: size)

    return pretend


def share(samples, cap, **options):
    return share_of(samples, None, max_tokens_per_gpu=cap, cost=float, device=CPU, **options)


@pytest.mark.parametrize("ranks", [1, 2, 3, 9])
def test_every_sample_is_on_one_rank_and_all_ranks_have_as_many_micro_batches(make_samples, as_rank, ranks):
    samples = make_samples(LENGTHS)
    seen, counts = Counter(), set()
    for rank in range(ranks):
        as_rank(rank, ranks)
        own = share(samples, 40)
        seen.update(i for batch in own.batches for i in batch.indices if i < own.fillers_from)
        counts.add(len(own.batches))
    assert seen == Counter(range(len(samples)))
    assert len(counts) == 1


def test_a_filler_has_no_weight(make_samples, as_rank):
    as_rank(1, 2)
    (batch,) = share(make_samples([(3, 4)]), 40).batches
    assert batch.indices == (1,)
    assert batch.weight_t.tolist() == batch.loss_mask_t.tolist() == [0.0]


def test_all_of_a_filler_is_padding(make_samples, as_rank):
    as_rank(1, 2)
    (batch,) = share(make_samples([(3, 4)]), 40).batches
    assert batch.sequences.padding_1s.tolist() == [[True, True]]


def test_rounds_are_equally_long_on_all_ranks_where_they_have_to_be(make_samples, as_rank):
    samples, cp = make_samples(LENGTHS), ContextSplit(multiple=4)

    def rounds(equal):
        for rank in range(9):
            as_rank(rank, 9)
            yield [len(b.tokens_s) for b in share(samples, 40, cp=cp, equal_rounds=equal).batches]

    lengths_rm = list(rounds(equal=False))
    assert list(rounds(equal=True)) == [[max(lengths) for lengths in zip(*lengths_rm, strict=True)]] * 9


# Relative to the largest gradient of the model: that of a bias may cancel out to mere rounding.
@pytest.mark.parametrize("reduction", ["sample", "token"])
def test_how_samples_are_spread_changes_neither_loss_nor_gradient(
    make_trainer, make_samples, as_rank, reduction
):
    objective = PolicyObjective(clip.policy_loss(ClipOptions()), Algorithm(reduction=reduction))
    samples = make_samples(LENGTHS)
    trainer = make_trainer(max_tokens_per_gpu=TOKENS)
    trainer.prepare_optimizer(Optimizer(), total_steps=1)

    def gradients():
        return {name: p.main_grad.clone() for name, p in trainer.stages[0].named_parameters()}

    loss = trainer.backward(samples, objective)["loss"]
    whole = gradients()
    largest = max(gradient.abs().max() for gradient in whole.values())

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.permutations(samples), st.integers(1, TOKENS), st.integers(1, 4))
    def check(order, cap, ranks):
        trainer._max_tokens = cap
        losses, parts = [], []
        for rank in range(ranks):
            as_rank(rank, ranks)
            losses.append(trainer.backward(order, objective)["loss"])
            parts.append(gradients())
        assert sum(losses) == pytest.approx(loss, rel=1e-6, abs=1e-6)
        for name, expected in whole.items():
            assert (sum(part[name] for part in parts) - expected).abs().max() <= 1e-6 * largest, name

    check()
