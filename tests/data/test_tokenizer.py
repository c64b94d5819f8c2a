import json

import pytest

from rlcore.data.tokenizer import load_tokenizer, stop_token_ids
from rlcore.errors import RlcoreError


def test_a_saved_tokenizer_loads_and_every_text_round_trips(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    for text in ("123 + 45", "é漢字🙂\r\n\t  x", "<|user|>hi"):
        assert loaded.decode(loaded.encode(text)) == text
    assert len(loaded.encode("2026")) == 4


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({"config.json": {"eos_token_id": 5}}, (5,)),
        ({"config.json": {"eos_token_id": [5, 6]}}, (5, 6)),
        ({"config.json": {"eos_token_id": 5}, "generation_config.json": {"eos_token_id": [7, 8]}}, (7, 8)),
        ({"config.json": {"eos_token_id": 5}, "generation_config.json": {}}, (5,)),
    ],
)
def test_stop_tokens_come_from_the_generation_config_then_the_config(tmp_path, files, ids):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert stop_token_ids(tmp_path) == ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "no eos_token_id"),
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"eos_token_id": "<|end|>"}', "eos_token_id is '<|end|>'"),
        ('{"eos_token_id": []}', "eos_token_id is []"),
    ],
)
def test_a_checkpoint_that_names_no_stop_token_is_an_error(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RlcoreError) as caught:
        stop_token_ids(tmp_path)
    assert message in str(caught.value)


def test_a_folder_without_tokenizer_files_is_named(tmp_path):
    with pytest.raises(RlcoreError, match="the checkpoint has no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(RlcoreError, match="no such checkpoint folder"):
        load_tokenizer(tmp_path / "absent")


def test_a_damaged_tokenizer_file_is_named(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(RlcoreError, match="the tokenizer does not load"):
        load_tokenizer(tmp_path)
