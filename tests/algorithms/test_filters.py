from rlcore.algorithms.filters import NonzeroStdOptions, nonzero_std
from rlcore.plugin import Drop, FilterContext, Keep, Sample

CONTEXT = FilterContext(step=0, wanted=4, kept=0, in_flight=0, version=0)


def decide(*rewards, **options):
    group = [Sample(prompt="?", reward=reward) for reward in rewards]
    return nonzero_std(group=group, context=CONTEXT, options=NonzeroStdOptions(**options))


def test_a_group_with_equal_rewards_is_dropped_by_name():
    assert decide(1.0, 1.0) == Drop("zero_std_1.0")
    assert decide(0.0, 0.0, keep_if_short=True) == Drop("zero_std_0.0", keep_if_short=True)


def test_a_group_with_different_rewards_is_kept():
    assert decide(1.0, 0.0, 0.0) == Keep()


def test_a_group_of_one_is_kept():
    assert decide(1.0) == Keep()
