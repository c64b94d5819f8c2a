import pytest
from rlcore_glm4.demo import DEMO

from rlcore.testing.demo import additions


def test_held_out_numbers_stand_in_no_training_problem():
    sets = additions()
    numbers = {name: {number for pair in pairs for number in pair} for name, pairs in sets.items()}
    assert not numbers["held_out"] & (numbers["warm_start"] | numbers["train"])
    assert len(set(sets["held_out"])) >= 500


def test_the_demo_is_the_same_every_time_but_for_the_weights_seed(tmp_path):
    for name, seed in {"first": 0, "again": 0, "other": 1}.items():
        DEMO.write(tmp_path / name, seed=seed)

    def content(name, file):
        return (tmp_path / name / file).read_bytes()

    for file in ("warm_start.jsonl", "train.jsonl", "held_out.jsonl", "model/tokenizer.json"):
        assert content("first", file) == content("other", file)
    assert content("first", "model/model.safetensors") == content("again", "model/model.safetensors")
    assert content("first", "model/model.safetensors") != content("other", "model/model.safetensors")


def test_the_tokenizer_decides_the_vocabulary_and_what_ends_a_response():
    assert DEMO.config["vocab_size"] == 256 + len(DEMO.special_tokens)
    names = [DEMO.special_tokens[token - 256] for token in DEMO.config["eos_token_id"]]
    assert names == list(DEMO.stop_tokens)


def test_the_command_line_makes_the_folder(tmp_path, capsys):
    DEMO.main("some.demo", [str(tmp_path / "new"), "--seed", "3"])
    assert (tmp_path / "new" / "model" / "config.json").is_file()
    assert "wrote a tiny model" in capsys.readouterr().out


def test_wrong_usage_is_told(capsys):
    with pytest.raises(SystemExit):
        DEMO.main("some.demo", [])
    assert "python -m some.demo" in capsys.readouterr().err
