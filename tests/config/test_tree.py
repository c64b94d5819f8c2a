"""YAML 1.2 with places; merging and changing trees."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcore.config.tree import Node, assign, merge, parse
from rlcore.errors import RlcoreError


def read(text):
    return parse(text, lambda line: f"f:{line}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("5E+3", 5000.0),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("0o17", 15),
        ("017", 17),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'5'", "5"),
        ("[1, 2.0, x]", [1, 2.0, "x"]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    plain = read(f"key: {text}").plain()["key"]
    assert plain == value
    assert type(plain) is type(value)


def test_every_value_knows_its_line():
    tree = read("a:\n  b: 1\n  c:\n    - 2\n    - 3\n")
    assert [node.place for node in tree.along(["a", "c", "1"])] == ["f:1", "f:1", "f:3", "f:5"]


def test_each_key_written_twice_is_named_with_both_lines():
    with pytest.raises(RlcoreError) as caught:
        read("a: 1\nb: {c: 1, c: 2}\na: 2\n")
    assert [(p.place, p.message) for p in caught.value.problems] == [
        ("f:2", "key 'c' was already written at f:2"),
        ("f:3", "key 'a' was already written at f:1"),
    ]


@pytest.mark.parametrize(
    "text", ["a: &x [*x]", "a: !!python/object:os.system x\nb: !secret y", "? [1, 2]\n: 3"]
)
def test_recursion_tags_and_keys_that_are_no_words_are_refused(text):
    with pytest.raises(RlcoreError):
        read(text)


def test_the_merge_key_of_older_yaml_is_refused_by_name():
    with pytest.raises(RlcoreError, match="no merge key '<<'"):
        read("a: &a {x: 1}\nb: {<<: *a, y: 2}")


def test_mappings_merge_and_lists_are_replaced():
    merged = merge(read("a: {x: 1, y: 2}\nb: [1, 2]"), read("a: {y: 3}\nb: [4]"))
    assert merged.plain() == {"a": {"x": 1, "y": 3}, "b": [4]}


def test_setting_use_resets_options_but_setting_an_option_keeps_the_others():
    base = read("loss: {use: clip, options: {low: 1, high: 2}}")
    assert merge(base, read("loss: {use: other}")).plain() == {"loss": {"use": "other"}}
    assert merge(base, read("loss: {options: {high: 3}}")).plain()["loss"]["options"] == {"low": 1, "high": 3}


def test_options_can_be_laid_over_a_bare_name():
    merged = merge(read("loss: clip"), read("loss: {options: {high: 3}}"))
    assert merged.plain() == {"loss": {"use": "clip", "options": {"high": 3}}}


def test_assigning_reaches_into_lists_and_keeps_other_places():
    tree = assign(read("a:\n- b: 1\n  c: 2\n"), ["a", "0", "b"], Node(9, "here"))
    assert tree.plain() == {"a": [{"b": 9, "c": 2}]}
    assert [*tree.along(["a", "0", "b"])][-1].place == "here"
    assert [*tree.along(["a", "0", "c"])][-1].place == "f:3"


def test_a_list_has_no_item_beyond_its_end():
    with pytest.raises(RlcoreError, match="no item '2' in a list of 1"):
        assign(read("a: [1]"), ["a", "2"], Node(9, "here"))


leaves = st.one_of(st.integers(), st.booleans(), st.text(max_size=3))
trees = st.recursive(
    leaves, lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
)


def node(value):
    return Node({k: node(v) for k, v in value.items()} if isinstance(value, dict) else value, "p")


@given(st.dictionaries(st.sampled_from("abc"), trees), st.dictionaries(st.sampled_from("abc"), trees))
def test_merging_the_same_overlay_twice_changes_nothing_more(base, over):
    once = merge(node(base), node(over))
    assert merge(once, node(over)).plain() == once.plain()
