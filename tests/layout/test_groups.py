"""Process groups are those that Megatron makes."""

import pytest

from rlcore.layout.groups import groups, in_words
from rlcore.layout.plan import Layout


def laid_out(world_size, **sizes):
    return Layout(world_size=world_size, stages=(), **sizes)


@pytest.mark.parametrize(
    "layout",
    [
        laid_out(8, tp=2, pp=2, etp=2),
        laid_out(16, tp=2, cp=2, pp=2, etp=2),
        laid_out(16, tp=2, pp=2, ep=4),
        laid_out(24, tp=2, cp=3, ep=2, etp=2),
    ],
)
def test_groups_are_megatrons(layout):
    from megatron.core.parallel_state import RankGenerator

    order, pp = "tp-cp-ep-dp-pp", layout.pp
    dense = RankGenerator(layout.tp, 1, layout.dp, pp, layout.cp, order)
    experts = RankGenerator(layout.etp, layout.ep, layout.expert_dp, pp, 1, order)
    theirs = {kind: dense.get_ranks(kind) for kind in ("tp", "cp", "dp", "pp")}
    if layout.ep > 1:
        theirs |= {
            "etp": experts.get_ranks("tp"),
            "ep": experts.get_ranks("ep"),
            "edp": experts.get_ranks("dp"),
        }
    ours = {kind: [list(group) for group in found] for kind, found in groups(layout).items()}
    assert {kind: sorted(found) for kind, found in ours.items()} == {
        kind: sorted(found) for kind, found in theirs.items()
    }


def test_the_groups_of_512_ranks_fit_a_line():
    found = groups(laid_out(512, tp=8, pp=4, etp=8))
    assert in_words(found["tp"]) == "64 of 8 ranks: 0-7, 8-15, 16-23 … 504-511"
    assert in_words(found["pp"]) == "128 of 4 ranks: 0+128+…+384, 1+129+…+385, 2+130+…+386 … 127+255+…+511"
    assert in_words(groups(laid_out(2, pp=2))["pp"]) == "1 of 2 ranks: 0-1"
