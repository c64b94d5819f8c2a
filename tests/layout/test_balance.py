"""Layouts of the sizes asked for, by what their dearest stage costs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcore.errors import Problem
from rlcore.layout.balance import balanced
from rlcore.layout.cuts import best_cuts

ANY = [True]  # a layer that may start a stage

layers = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=2, max_size=10)


def ends(found):
    return [(one.parallel.first_stage_layers, one.parallel.last_stage_layers) for one in found]


def test_the_output_layer_shortens_the_last_stage(make_model, make_recipe):
    model = make_model(ANY * 40, vocab_size=3)
    assert ends(balanced(make_recipe(pp=4), model))[0] == (12, 6)


def test_mtp_layers_and_their_output_layers_shorten_it_more(make_model, make_recipe):
    model = make_model(ANY * 16, mtp_layers=make_model(ANY).spec.layers)
    firsts = [ends(balanced(make_recipe(pp=2, mtp_layers=count), model))[0] for count in (0, 1)]
    assert firsts == [(9, None), (10, None)]


def test_stages_that_no_equal_shares_allow_get_a_free_form_layout(make_model, make_recipe):
    model = make_model([layer in (0, 1, 3, 6) for layer in range(10)])
    (only,) = balanced(make_recipe(pp=4), model)
    assert only.parallel.pipeline_layout == "Et|t*2|t*3|t*4L"


def test_layouts_come_with_what_their_dearest_stage_costs(make_model, make_recipe):
    model, recipe = make_model(ANY * 12), make_recipe(pp=3)
    for one in balanced(recipe, model):
        placed = model.place(recipe.model_copy(update={"parallel": one.parallel}))
        assert one.dearest == max(placed.relative_costs(recipe.rollout.max_response_tokens))


@settings(deadline=None)
@given(layers=layers, pp=st.integers(2, 4), output=st.integers(0, 4))
def test_the_first_layout_is_the_best_that_trying_finds(make_model, make_recipe, layers, pp, output):
    costs, starts = zip(*layers, strict=True)
    recipe, model = make_recipe(pp=pp), make_model(starts, costs, vocab_size=output)
    every = best_cuts(costs, starts, pp, limit=1000)
    dearest = [max(free_cost(model, recipe, cut)) for cut in every]
    found = balanced(recipe, model)
    assert bool(found) == bool(dearest)
    if found:
        assert found[0].dearest == pytest.approx(min(dearest), abs=0.01)


def free_cost(model, recipe, cut):
    layout = "E" + "|".join("t" * size for size in cut) + "L"
    parallel = recipe.parallel.model_copy(update={"pipeline_layout": layout})
    return model.place(recipe.model_copy(update={"parallel": parallel})).relative_costs(8)


def test_only_much_better_layouts_are_named_beside_one_that_works(make_model, make_recipe):
    model = make_model(ANY * 40, vocab_size=1)
    even, uneven = make_recipe(pp=4), make_recipe(pp=4, first_stage_layers=4, last_stage_layers=16)
    assert balanced(even, model, than=model.place(even)) == []
    assert balanced(uneven, model, than=model.place(uneven))[0].dearest < 1.1


def test_one_stage_leaves_nothing_to_choose(make_model, make_recipe):
    assert balanced(make_recipe(), make_model(ANY * 4)) == []


def test_the_rules_of_plugins_are_kept(make_model, make_recipe):
    class PairsStayTogether:
        def validate(self, layout):
            odd = any(len(chunk) % 2 for stage in layout.stages for chunk in stage)
            return [Problem("parallel.pp", "a pair is cut apart")] if odd else []

    recipe, model = make_recipe(pp=2), make_model(ANY * 10, rules=[PairsStayTogether()])
    assert ends(balanced(recipe, model)) == [(6, None), (4, None)]


def test_the_chunks_of_a_free_form_layout_are_as_many_in_others(make_model, make_recipe):
    recipe, model = make_recipe(pp=2, pipeline_layout="Et*5|t|t|tL"), make_model(ANY * 8)
    for one in balanced(recipe, model):
        placed = model.place(recipe.model_copy(update={"parallel": one.parallel}))
        assert placed.layout.vpp == 2


def test_chunks_of_one_rank_count_together(make_model, make_recipe):
    model = make_model(ANY * 8, costs=[4, 1, 1, 1, 1, 4, 4, 1])
    recipe = make_recipe(pp=2, vpp=2)
    best, *others = balanced(recipe, model)
    assert model.place(recipe.model_copy(update={"parallel": best.parallel})).layout.vpp == 2
    assert best.dearest == pytest.approx(10 / 9.5)
    assert all(one.dearest > best.dearest for one in others)
