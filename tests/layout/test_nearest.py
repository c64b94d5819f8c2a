"""What is offered beside a layout that does not work."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rlcore.config.schema import Recipe
from rlcore.errors import Problem
from rlcore.layout.model import Placeable
from rlcore.layout.nearest import changes, nearest
from rlcore.layout.plan import world_size
from rlcore.models.spec import LayerInfo, ModelSpec

FIELDS = {"num_attention_heads": 8, "num_query_groups": 2, "ffn_hidden_size": 64}
EXPERTS = {**FIELDS, "num_moe_experts": 8, "moe_ffn_hidden_size": 32}


class PairsStayTogether:
    """A plugin's rule: stages of an even number of layers."""

    def validate(self, layout):
        odd = any(len(chunk) % 2 for stage in layout.stages for chunk in stage)
        return [Problem("parallel.pp", "a pair is cut apart")] if odd else []


def model(layers=8, fields=FIELDS, rules=()):
    layer = LayerInfo(kind="dense", parameters=1, flops=float)
    spec = ModelSpec(
        model_type="toy",
        hf_config={},
        hidden_size=8,
        vocab_size=10,
        layers=(layer,) * layers,
        transformer_config=fields,
        model_args={},
        layer_specs=lambda config, stage: None,
    )
    return Placeable(spec, tuple(rules))


def recipe(gpus=8, **parallel):
    return Recipe.model_validate(
        {"model": {"checkpoint": "m"}, "parallel": parallel, "cluster": {"gpus_per_node": gpus}}
    )


def offered(asked, of):
    return [changes(asked.parallel, one) for one in nearest(asked, of)]


def test_the_nearest_size_comes_first():
    assert offered(recipe(tp=3, pp=2), model())[0] == ["--set parallel.tp=4"]


def test_layers_that_no_stage_count_divides_get_an_uneven_end():
    asked = recipe(pp=2)
    first = nearest(asked, model(layers=9))[0]
    assert changes(asked.parallel, first) in (
        ["--set parallel.first_stage_layers=4"],
        ["--set parallel.last_stage_layers=4"],
    )


def test_no_end_is_offered_that_all_others_would_wait_for():
    ends = [one.last_stage_layers or 0 for one in nearest(recipe(16, pp=16), model(layers=40))]
    assert max(ends) <= 3 * 40 / 16


def test_stages_start_where_the_model_lets_them(make_model, published):
    asked = recipe(pp=8, last_stage_layers=8)
    first = nearest(asked, make_model(published))[0]
    assert changes(asked.parallel, first) == [
        "--set parallel.first_stage_layers=2",
        "--set parallel.last_stage_layers=4",
    ]


def test_a_free_form_layout_is_offered_where_no_sizes_of_the_ends_work(make_model):
    starts = [layer in (0, 1, 3, 6) for layer in range(10)]
    asked = recipe(gpus=4, pp=4)
    assert offered(asked, make_model(starts))[0] == ["--set 'parallel.pipeline_layout=Et|t*2|t*3|t*4L'"]


def test_the_chunks_of_an_illegal_free_form_layout_are_kept(make_model):
    asked = recipe(gpus=2, pp=2, pipeline_layout="Et*3|t|t*2|t*2L")
    of = make_model([True, True] * 2 + [False, True] * 2)
    assert [len(stage) for stage in of.place(first_of(asked, of)).layout.stages] == [2, 2]


def first_of(asked, of):
    return asked.model_copy(update={"parallel": nearest(asked, of)[0]})


def test_no_two_offers_are_of_the_same_sizes(make_model, published):
    found = nearest(recipe(pp=8, etp=1), make_model(published))
    assert len({(one.tp, one.pp, one.cp, one.ep) for one in found}) == len(found)


def test_a_free_form_layout_that_does_not_fit_is_left_out():
    asked = recipe(pp=2, pipeline_layout="Ettt|tttL")
    assert offered(asked, model())[0] == ["--set parallel.pipeline_layout=null"]


def test_experts_that_a_model_lacks_are_not_spread():
    assert offered(recipe(ep=8), model())[0] == ["--set parallel.ep=1"]


def test_the_rules_of_plugins_are_kept():
    of = model(layers=12, rules=[PairsStayTogether()])
    assert all(len(stage) % 2 == 0 for one in nearest(recipe(pp=4), of) for stage in stages(recipe(), one, of))


def stages(of_recipe, parallel, of):
    placed = of.place(of_recipe.model_copy(update={"parallel": parallel}))
    return [chunk for rank in placed.layout.stages for chunk in rank]


def test_without_a_way_nothing_is_offered():
    class Never:
        def validate(self, layout):
            return [Problem("parallel", "never")]

    assert nearest(recipe(tp=2), model(rules=[Never()])) == []


sizes = st.sampled_from([1, 2, 3, 4, 5, 6, 8])
maybe = st.none() | st.integers(1, 5)


@settings(max_examples=40, deadline=None)
@given(
    parallel=st.fixed_dictionaries(
        {
            **dict.fromkeys(("tp", "pp", "cp", "ep"), sizes),
            **dict.fromkeys(("vpp", "etp", "dp", "first_stage_layers", "last_stage_layers"), maybe),
        }
    ),
    gpus=st.sampled_from([0, 8, 12, 64]),
    layers=st.integers(2, 17),
    fields=st.sampled_from([FIELDS, EXPERTS]),
)
def test_whatever_is_offered_breaks_no_rule_and_uses_the_same_gpus(parallel, gpus, layers, fields):
    asked, of = recipe(gpus, **parallel), model(layers, fields, [PairsStayTogether()])
    found = nearest(asked, of)
    assert len(found) <= 3
    for one in found:
        changed = asked.model_copy(update={"parallel": one})
        of.place(changed)
        assert not gpus or world_size(changed) == gpus
