"""Composition, overrides, provenance, and the resolved dump."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcore.config.dump import dump
from rlcore.config.load import load_recipe, read_recipe
from rlcore.config.schema import Recipe
from rlcore.config.tree import Node
from rlcore.errors import RlcoreError
from rlcore.registry import Catalog
from rlcore.registry.resources import recipes

PRESET = """\
model: {checkpoint: some/model}
rollout:
  top_p: 0.9
  stop: [a, b]
loss: {use: clip, options: {eps_clip: 0.1}}
"""
SHIPPED = [recipe.name for recipe in recipes(Catalog.installed().resources())]


def test_a_recipe_is_laid_over_its_bases_in_order(write):
    write(PRESET, "preset.yaml")
    write("rollout: {top_p: 0.8, top_k: 5}\ntrain: {steps: 3}", "algorithm.yaml")
    loaded = load_recipe(write("base: [preset.yaml, ./algorithm.yaml]\nrollout:\n  top_k: 7\n  stop: [c]\n"))
    rollout = loaded.recipe.rollout
    assert (rollout.top_p, rollout.top_k, rollout.stop) == (0.8, 7, ["c"])


def test_every_value_says_where_it_was_written(write):
    write(PRESET, "preset.yaml")
    loaded = load_recipe(write("base: preset.yaml\nseed: 1\n"), ["train.steps=9", "rollout.top_k=3"])
    assert loaded.source("rollout.top_p") == "preset.yaml:3"
    assert loaded.source("seed") == "recipe.yaml:2"
    assert loaded.source("train.steps") == "--set train.steps=9"
    assert loaded.place("loss.options.eps_clip") == "preset.yaml:5 (loss.options.eps_clip)"


def test_a_key_that_nobody_wrote_is_placed_at_what_holds_it(write):
    loaded = load_recipe(write(PRESET))
    assert loaded.place("rollout.engine") == "recipe.yaml:2 (rollout.engine)"


def test_bases_are_found_beside_the_recipe_and_among_those_of_plugins(write, tmp_path):
    (tmp_path / "inner").mkdir()
    write(PRESET, "inner/preset.yaml")
    write("base: preset.yaml", "inner/recipe.yaml")
    assert load_recipe("inner/recipe.yaml").recipe.rollout.top_p == 0.9
    assert load_recipe(write(f"base: {SHIPPED[0]}\nname: mine")).recipe.name == "mine"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optimizer.lr=1e-5", lambda r: r.optimizer.lr == 1e-5),
        ("rewards.0.weight=2", lambda r: (r.rewards[0].use, r.rewards[0].weight) == ("exact", 2)),
        ("rewards.0.use=math", lambda r: r.rewards[0].use == "math"),
        ("rewards=[math, exact]", lambda r: len(r.rewards) == 2),
        ("loss.use=gspo", lambda r: r.loss.options == {}),
        ("loss=gspo", lambda r: (r.loss.use, r.loss.options) == ("gspo", {})),
        ("loss.options.eps_clip_high=1", lambda r: r.loss.options == {"eps_clip": 0.1, "eps_clip_high": 1}),
        ("advantage.options.a=1", lambda r: (r.advantage.use, r.advantage.options) == ("grpo", {"a": 1})),
        ("checkpoints.every=null", lambda r: r.checkpoints.every is None),
        ("rollout.stop=['a=b', c]", lambda r: r.rollout.stop == ["a=b", "c"]),
    ],
)
def test_set_changes_a_value_as_yaml_would(write, override, value):
    assert value(load_recipe(write(PRESET + "rewards: [exact]"), [override]).recipe)


@pytest.mark.parametrize(
    ("override", "message", "remedy"),
    [
        ("train.stepz=1", "unknown key 'stepz'", "'steps'"),
        ("train.steps", "expected KEY=VALUE", "--set train.steps=100"),
        ("rewards.5.weight=1", "no item '5' in a list of 1", "0 to 0"),
        ("rollout.stop=[a", "not valid YAML", ""),
        ("train.steps=ten", '"ten" is not a whole number', "digits"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_given(write, override, message, remedy):
    with pytest.raises(RlcoreError) as caught:
        load_recipe(write(PRESET + "rewards: [exact]"), [override])
    [problem] = caught.value.problems
    assert problem.place.startswith(f"--set {override}")
    assert message in problem.message
    assert remedy in problem.remedy


def test_a_misspelt_file_or_name_is_answered_with_the_nearest(write):
    write(PRESET)
    with pytest.raises(RlcoreError, match=r"did you mean 'recipe\.yaml'"):
        load_recipe("recipes.yaml")
    with pytest.raises(RlcoreError, match=f"did you mean '{SHIPPED[0]}'"):
        load_recipe(SHIPPED[0][:-1])


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_loads_and_its_dump_loads_back_equal(name, write):
    loaded = load_recipe(name)
    assert load_recipe(write(loaded.dump())).recipe == loaded.recipe


def test_the_dump_names_the_source_of_each_line(write):
    text = load_recipe(write(PRESET), ["seed=7"]).dump()
    assert "seed: 7 # --set seed=7\n" in text
    assert "  top_p: 0.9 # recipe.yaml:3\n" in text
    assert "  top_k: -1 # default\n" in text


texts = st.text(max_size=12).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text))
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(name=texts, stop=st.lists(texts, max_size=3), options=st.dictionaries(texts, anything, max_size=3))
def test_any_recipe_survives_dump_and_load(tmp_path_factory, name, stop, options):
    made = {"name": name, "model": {"checkpoint": name}, "rollout": {"stop": stop}, "megatron": options}
    recipe = Recipe.model_validate(made)
    file = tmp_path_factory.getbasetemp() / "dumped.yaml"
    file.write_text(dump(recipe, Node({}, "nowhere")), encoding="utf-8")
    assert read_recipe(str(file)).recipe == recipe


def test_loading_imports_no_torch_and_no_plugin(write):
    write(PRESET)
    code = (
        "import sys; from rlcore.config.load import load_recipe; load_recipe('recipe.yaml');"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'ray', 'megatron', 'rlcore_rewards')])"
    )
    assert subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True).strip() == "[]"
