import math

import torch

from rlcore.models.measures import add_measure, measures
from rlcore.trainer.metrics import Tally, Totals, summary


def tally(loss, ratio_max=None, **sums):
    named = {"loss": loss, "weight": 0.5, "tokens": 3.0, **sums}
    maxima = {} if ratio_max is None else {"ratio_max": torch.tensor(ratio_max)}
    return Tally({name: torch.tensor(value) for name, value in named.items()}, maxima)


def test_sums_add_up_and_maxima_are_the_largest():
    found = summary(Totals.of([tally(0.25, ratio_max=1.5, kl=0.1), tally(0.5, ratio_max=1.25, kl=0.3)]))
    assert found["loss"] == 0.75
    assert found["tokens"] == 6
    assert found["ratio_max"] == 1.5
    assert math.isclose(found["kl"], 0.4, rel_tol=1e-6)


def test_what_layers_measured_is_averaged_over_their_tokens_on_whichever_rank_they_are():
    first, second = {}, {}
    add_measure(first, "distance", torch.tensor(3.0), torch.tensor(4.0))
    add_measure(first, "distance", torch.tensor(1.0), torch.tensor(4.0))
    add_measure(second, "distance", torch.tensor(2.0), torch.tensor(2.0))
    totals = [Totals.of([tally(0.0), Tally(measures(first), {})]), Totals.of([Tally(measures(second), {})])]
    assert summary(Totals.merge(totals))["distance"] == 0.6


def test_ranks_without_micro_batches_of_their_own_add_nothing():
    some = Totals.of([tally(0.25, ratio_max=1.5)])
    assert Totals.merge([Totals(), some, Totals.of([]), Totals.of([Tally({}, {})])]) == some


def test_a_metric_that_only_some_micro_batches_have_counts_where_it_is():
    found = summary(Totals.of([tally(0.0), tally(0.0, ratio_max=2.0, gap=0.5, compared=2.0)]))
    assert found["ratio_max"] == 2.0
    assert found["logprob_gap/mean"] == 0.25


def test_where_no_token_can_be_compared_there_is_no_gap():
    sums = tally(0.0, gap=0.0, compared=0.0).sums
    found = summary(Totals.of([Tally(sums, {"logprob_gap/max": torch.zeros(())})]))
    assert not [name for name in found if name.startswith("logprob_gap/")]


def test_nothing_hides_a_nan():
    one, two = Totals.of([tally(math.nan, ratio_max=math.nan)]), Totals.of([tally(1.0, ratio_max=9.0)])
    for order in ([one, two], [two, one]):
        found = summary(Totals.merge(order))
        assert math.isnan(found["loss"])
        assert math.isnan(found["ratio_max"])
