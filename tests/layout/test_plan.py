"""Parallel sizes and pipeline stages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcore.config.schema import Recipe
from rlcore.errors import RlcoreError
from rlcore.layout.plan import layout_of


def lay_out(layers=8, gpus=8, nodes=1, megatron=None, **parallel):
    sections = {"cluster": {"nodes": nodes, "gpus_per_node": gpus}, "megatron": megatron or {}}
    return layout_of(
        Recipe.model_validate({"model": {"checkpoint": "m"}, "parallel": parallel, **sections}),
        [True] * layers,
    )


def test_what_is_left_of_the_gpus_is_data_parallel():
    layout = lay_out(tp=2, pp=2)
    assert (layout.dp, layout.expert_dp, layout.world_size) == (2, 2, 8)


def test_the_published_layout_of_a_744b_model_comes_out():
    layout = lay_out(layers=78, nodes=32, tp=4, pp=8, cp=8, ep=32, first_stage_layers=14, last_stage_layers=16)
    assert (layout.dp, layout.expert_dp, layout.etp) == (1, 1, 1)
    assert [chunk[0] for (chunk,) in layout.stages] == [0, 14, 22, 30, 38, 46, 54, 62]


def test_chunks_of_virtual_stages_go_round_the_ranks():
    layout = lay_out(pp=2, vpp=2)
    assert layout.stages == (((0, 1), (4, 5)), ((2, 3), (6, 7)))


def test_experts_are_split_like_all_else_unless_they_are_spread():
    assert lay_out(tp=2).etp == 2
    assert lay_out(tp=2, ep=4).etp == 1


def test_on_the_cpu_the_smallest_world_is_taken():
    assert lay_out(gpus=0, tp=2, pp=2, ep=4).world_size == 8


def test_on_the_cpu_dp_asks_for_more_ranks():
    assert lay_out(gpus=0, tp=2, dp=3).world_size == 6


@given(
    pp=st.integers(2, 6),
    middle=st.integers(1, 5),
    first=st.none() | st.integers(1, 9),
    last=st.none() | st.integers(1, 9),
)
def test_every_layer_is_on_exactly_one_stage_in_order(pp, middle, first, last):
    uneven = (first is not None) + (last is not None)
    layers = middle * (pp - uneven) + (first or 0) + (last or 0)
    layout = lay_out(layers=layers, gpus=pp, pp=pp, first_stage_layers=first, last_stage_layers=last)
    assert [layer for (chunk,) in layout.stages for layer in chunk] == list(range(layers))


@pytest.mark.parametrize(
    ("settings", "key", "message", "remedy"),
    [
        ({"tp": 3}, "parallel", "tp × pp × cp = 3 does not divide 8 GPUs", "6 or 9 GPUs"),
        ({"tp": 16, "etp": 16}, "parallel", "16 does not divide 8", "16 GPUs"),
        ({"tp": 2, "dp": 2}, "parallel.dp", "dp 2 × 2 (tp × pp × cp) is not the 8 GPUs", "dp: 4"),
        ({"ep": 3}, "parallel.ep", "etp × ep × pp = 3 does not divide 8", "6 or 9"),
        ({"tp": 2, "etp": 1}, "parallel.etp", "wrong gradients", "leave etp out"),
        ({"gpus": 0, "tp": 2, "ep": 2, "etp": 2}, "parallel.etp", "gloo", "etp: 1"),
        (
            {"layers": 9, "pp": 2},
            "parallel.pp",
            "9 of 9 layers are left for 2",
            "first_stage_layers: 4, which leaves 5",
        ),
        ({"pp": 2, "first_stage_layers": 3, "last_stage_layers": 3}, "parallel.pp", "2 of 8", "out"),
        ({"pp": 2, "first_stage_layers": 9}, "parallel.pp", "-1 of 8", "first_stage_layers: 6"),
        ({"pp": 2, "vpp": 3}, "parallel.vpp", "3 chunks do not divide stages of 4 layers", "one of 1, 2, 4"),
        (
            {"pp": 2, "vpp": 2, "first_stage_layers": 2, "last_stage_layers": 6},
            "parallel.last_stage_layers",
            "divides by zero",
            "leave it out",
        ),
        (
            {"pp": 2, "ep": 2, "megatron": {"moe_token_dispatcher_type": "allgather"}},
            "megatron.moe_token_dispatcher_type",
            "refuses 'allgather'",
            "alltoall",
        ),
        ({"vpp": 2}, "parallel.vpp", "only one pipeline stage", "pp above 1"),
        ({"first_stage_layers": 2}, "parallel.first_stage_layers", "only one", "pp above 1"),
        (
            {"pp": 2, "pipeline_layout": "E|L", "first_stage_layers": 2},
            "parallel.first_stage_layers",
            "already",
            "one",
        ),
    ],
)
def test_a_layout_that_cannot_be_is_refused_with_one_that_can(settings, key, message, remedy):
    with pytest.raises(RlcoreError) as caught:
        lay_out(**settings)
    problem = next(problem for problem in caught.value.problems if problem.place == key)
    assert message in problem.message
    assert remedy in problem.remedy
