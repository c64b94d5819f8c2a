import pytest

from rlcore.errors import RlcoreError
from rlcore.models.hf_config import Rope, number_problems, read_hf_config, read_rope


def test_the_content_is_returned_as_it_stands(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "x", "rope_theta": 1e4, "extra": [1]}')
    assert read_hf_config(tmp_path) == {"model_type": "x", "rope_theta": 1e4, "extra": [1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no config.json"),
        ("{", "is not valid JSON"),
        ("[1]", "names no model_type"),
        ("{}", "names no model_type"),
        ('{"model_type": 3}', "names no model_type"),
    ],
)
def test_a_config_that_cannot_be_read_is_an_error(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(RlcoreError, match=message):
        read_hf_config(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(RlcoreError, match="is not a folder"):
        read_hf_config(tmp_path / "nowhere")


def test_keys_that_hold_no_number_are_named_all_at_once():
    config = {"layers": "4", "heads": 2, "eps": 1}
    problems = number_problems(config, ["layers", "heads", "width"], ["eps", "scale"])
    assert [problem.message for problem in problems] == [
        "layers must be a whole number, not '4'",
        "lacks width",
        "lacks scale",
    ]


@pytest.mark.parametrize(
    ("config", "rope"),
    [
        ({}, Rope(10000.0, 0.25)),
        ({"rope_theta": 5e5, "partial_rotary_factor": 0.5, "rope_scaling": None}, Rope(5e5, 0.5)),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, Rope(5e5, 0.25)),
    ],
)
def test_rope_is_read_from_where_either_transformers_writes_it(config, rope):
    assert read_rope(config, fraction=0.25) == rope


def test_scaled_positions_are_refused():
    with pytest.raises(RlcoreError, match="rope type 'yarn' is not supported"):
        read_rope({"rope_scaling": {"type": "yarn", "factor": 4.0}}, fraction=0.5)
