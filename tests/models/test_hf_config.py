import pytest

from rlcore.errors import RlcoreError
from rlcore.models.hf_config import read_hf_config


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
