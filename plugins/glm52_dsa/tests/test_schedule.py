import pytest
from rlcore_glm52_dsa.schedule import full_layers, sources
from transformers import GlmMoeDsaConfig

from rlcore.errors import RlcoreError


def letters(**hf_config):
    return "".join("F" if full else "S" for full in full_layers(hf_config))


@pytest.mark.parametrize("frequency", [None, 0, 1, 2, 3, 4, 7])
@pytest.mark.parametrize("offset", [None, 1, 2, 3, 5])
def test_frequency_and_offset_mean_what_they_mean_to_transformers(frequency, offset):
    given = {"index_topk_freq": frequency, "index_skip_topk_offset": offset}
    keys = {"num_hidden_layers": 30} | {key: value for key, value in given.items() if value is not None}
    theirs = GlmMoeDsaConfig(**keys).indexer_types
    assert full_layers(keys) == tuple(kind == "full" for kind in theirs)


def test_the_published_schedule_has_a_layer_of_four_choose_from_the_third_on():
    published = letters(num_hidden_layers=78, index_topk_freq=4, index_skip_topk_offset=3)
    assert published == "FF" + "FSSS" * 19


def test_types_come_before_the_pattern_and_the_pattern_before_the_frequency():
    keys = {"num_hidden_layers": 3, "index_topk_freq": 1, "index_topk_pattern": "FFS"}
    assert letters(**keys) == "FFS"
    assert letters(**keys, indexer_types=["full", "shared", "full"]) == "FSF"
    assert letters(**(keys | {"index_topk_pattern": None})) == "FFF"


def test_a_pattern_may_be_a_list_of_words():
    assert letters(num_hidden_layers=2, index_topk_pattern=["full", "shared"]) == "FS"


def test_a_layer_uses_what_the_last_full_one_chose():
    assert sources([True, True, False, False, True, False]) == (0, 1, 1, 1, 4, 4)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"indexer_types": ["shared", "full"]}, "indexer_types lets layer 0 share"),
        ({"index_topk_pattern": "SF"}, "index_topk_pattern lets layer 0 share"),
        ({"indexer_types": ["full"]}, "indexer_types names 1 layers of 2"),
        ({"index_topk_pattern": "FX"}, "index_topk_pattern says X"),
        ({"indexer_types": ["full", "none"]}, "indexer_types says none"),
        ({"index_topk_freq": 4, "index_skip_topk_offset": 0}, "index_skip_topk_offset 0 lets layer 0 share"),
        ({"index_topk_freq": "four"}, "index_topk_freq must be a whole number, not 'four'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(keys, message):
    with pytest.raises(RlcoreError, match=message):
        full_layers({"num_hidden_layers": 2, **keys})
