"""Stages start only with layers that need none of the stage before."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcore.errors import RlcoreError

schedules = st.lists(st.booleans(), min_size=1, max_size=15).map(lambda later: (True, *later))


def problems(model, recipe):
    try:
        model.place(recipe)
    except RlcoreError as error:
        return error.problems
    return []


def starts_are_allowed(starts, first, middle, later):
    """The rule itself, about all stages but the first."""
    return all(starts[first + middle * stage] for stage in range(later))


@pytest.mark.parametrize("pp", range(2, 17))
def test_every_split_of_the_published_model_is_judged_as_its_rule_says(published, make_model, make_recipe, pp):
    model, recipe = make_model(published), make_recipe(pp=pp)
    shares = range(1, 78 // (pp - 2) + 1) if pp > 2 else [0]
    for middle, first in product(shares, range(1, 78)):
        last = 78 - first - middle * (pp - 2)
        if last > 0:
            ends = {"first_stage_layers": first, "last_stage_layers": last}
            asked = recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update=ends)})
            assert (not problems(model, asked)) == starts_are_allowed(published, first, middle, pp - 1)


@given(starts=schedules, pp=st.integers(2, 6), first=st.integers(1, 15), last=st.integers(1, 15))
def test_splits_of_any_model_are_judged_as_the_rule_says(make_model, make_recipe, starts, pp, first, last):
    middle, left = divmod(len(starts) - first - last, pp - 2) if pp > 2 else (0, len(starts) - first - last)
    is_split = left == 0 and (middle > 0 or pp == 2)
    recipe = make_recipe(pp=pp, first_stage_layers=first, last_stage_layers=last)
    legal = is_split and starts_are_allowed(starts, first, middle, pp - 1)
    assert (not problems(make_model(starts), recipe)) == legal


@given(starts=schedules, cut=st.lists(st.integers(1, 5), min_size=2, max_size=6))
def test_free_form_layouts_are_judged_as_the_rule_says(make_model, make_recipe, starts, cut):
    starts = (starts * sum(cut))[: sum(cut)]
    recipe = make_recipe(pp=len(cut), pipeline_layout="E" + "|".join("t" * size for size in cut) + "L")
    firsts = [sum(cut[:stage]) for stage in range(1, len(cut))]
    assert (not problems(make_model(starts), recipe)) == all(starts[layer] for layer in firsts)


@pytest.mark.parametrize(
    ("parallel", "place", "message", "remedy"),
    [
        (
            {"pp": 8, "last_stage_layers": 8},
            "parallel.pp",
            "stage 2 starts at layer 20, which needs layer 18 on the same stage; "
            "so do stage 4 (layer 40), stage 6 (layer 60)",
            "first_stage_layers: 2, last_stage_layers: 4, which leaves 12 for each other stage",
        ),
        (
            {"pp": 13},
            "parallel.pp",
            "stage 2 starts at layer 12, which needs layer 10 on the same stage; "
            "so do stage 4 (layer 24), stage 6 (layer 36), stage 8 (layer 48) and 2 more",
            "pipeline_layout: Et*6|t*4|",
        ),
        (
            {"pp": 2, "last_stage_layers": 39},
            "parallel.pp",
            "stage 1 starts at layer 39, which needs layer 38 on the same stage",
            "last_stage_layers: 40, which leaves 38 for each other stage",
        ),
        (
            {"pp": 8},
            "parallel.pp",
            "78 of 78 layers are left for 8 equal stages",
            "first_stage_layers: 14, last_stage_layers: 16",
        ),
        (
            {"pp": 2, "pipeline_layout": "Et*40|t*38L"},
            "parallel.pipeline_layout",
            "stage 1 starts at layer 40, which needs layer 38 on the same stage",
            "start it at layer 38 or 42",
        ),
        (
            {"pp": 2, "first_stage_layers": 30, "last_stage_layers": 40},
            "parallel.pp",
            "8 of 78 layers are left for 0 equal stages",
            "first_stage_layers: 38, which leaves 40 for each other stage; leave last_stage_layers out",
        ),
        ({"pp": 26}, "parallel.pp", "stage 1 starts at layer 3, which needs layer 2", "pp: at most 21"),
    ],
)
def test_an_illegal_start_is_named_with_what_works(
    published, make_model, make_recipe, parallel, place, message, remedy
):
    (problem,) = problems(make_model(published), make_recipe(**parallel))
    assert problem.place == place
    assert message in problem.message
    assert remedy in problem.remedy


def test_chunks_are_named_by_rank_and_turn(published, make_model, make_recipe):
    recipe = make_recipe(pp=8, vpp=2, first_stage_layers=14, last_stage_layers=16)
    (problem,) = problems(make_model(published), recipe)
    assert problem.message.startswith("chunk 0 of stage 1 starts at layer 7, which needs layer 6")
    assert problem.message.endswith("and 4 more")


def test_chunks_that_no_equal_shares_allow_get_a_free_form_layout(published, make_model, make_recipe):
    recipe = make_recipe(pp=8, vpp=2, first_stage_layers=14, last_stage_layers=16, mtp_layers=1)
    model = make_model(published, mtp_layers=make_model([True]).spec.layers)
    (problem,) = problems(model, recipe)
    keys, _, dropped = problem.remedy.partition("; ")
    assert dropped == "leave first_stage_layers and last_stage_layers out"
    offered = keys.removeprefix("pipeline_layout: ")
    assert problems(model, make_recipe(pp=8, vpp=2, pipeline_layout=offered, mtp_layers=1)) == []


def test_vpp_is_offered_only_where_chunks_may_start(make_model, make_recipe):
    starts = [True, False] * 6
    (problem,) = problems(make_model(starts), make_recipe(pp=2, vpp=5))
    assert problem.remedy == "one of 1, 3"
