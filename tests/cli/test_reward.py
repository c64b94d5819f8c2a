"""`rlcore reward`: what a reward author sees of a file of samples."""

import json
from pathlib import Path

import pytest

from rlcore.cli.main import main

SAMPLES = [
    {"prompt": "2 + 3 = ?", "response": "It is \\boxed{5}.", "label": "5", "metadata": {}},
    {"prompt": [{"role": "user", "content": "6?"}], "response": "six", "label": 6},
    {"response": "\\boxed{1}"},
]


def write(path: Path, *lines: object) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def test_json_gives_a_record_per_line_and_an_error_makes_the_exit_code_1(tmp_path, capsys):
    assert main(["reward", "math", write(tmp_path / "s.jsonl", *SAMPLES), "--json"]) == 1
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(first) == {"index", "reward", "parts", "seconds", "error"}
    assert (first["index"], first["reward"], first["parts"], first["error"]) == (0, 1.0, {"format": 1.0}, None)
    assert (second["reward"], second["parts"]) == (0.0, {"format": 0.0})
    assert third["reward"] is None
    assert "has no label" in third["error"]


def test_the_table_ends_in_a_summary(tmp_path, capsys):
    assert main(["reward", "math", write(tmp_path / "s.jsonl", *SAMPLES[:2])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["INDEX", "REWARD", "PARTS", "SECONDS", "ERROR"]
    assert lines[1].startswith("0      1       format=1")
    assert lines[-1] == "2 samples, 0 with an error, reward mean 0.5, least 0, most 1"


def test_options_are_set_as_in_a_recipe(tmp_path, capsys):
    file = write(tmp_path / "s.jsonl", {"response": "<a>YES</a>", "label": "yes"})
    settings = ["--set", "pattern=<a>(.*)</a>", "--set", "ignore_case=true"]
    assert main(["reward", "exact", file, *settings, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reward"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exakt"], "did you mean exact?"),
        (["exact", "--set", "ignore_cas=true"], "did you mean ignore_case?"),
        (["exact", "--set", "pattern=("], "exact.options.pattern"),
        (["exact", "--set", "strip"], "expected KEY=VALUE"),
    ],
)
def test_a_wrong_name_or_option_is_said_before_anything_is_scored(tmp_path, capsys, arguments, message):
    name, *rest = arguments
    assert main(["reward", name, write(tmp_path / "s.jsonl", *SAMPLES), *rest]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert not captured.out


def test_all_malformed_lines_are_reported_at_once_with_their_place(tmp_path, capsys):
    bad = ["{", "[1]", {"answer": "5"}, {"response": 5, "metadata": []}]
    file = write(tmp_path / "s.jsonl", SAMPLES[0], *bad)
    assert main(["reward", "exact", file]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert [error.split(": ")[1] for error in errors] == [f"{file}:{line}" for line in (2, 3, 4, 5, 5)]
    assert "response: Input should be a valid string, not 5" in "".join(errors)


@pytest.mark.parametrize(("content", "message"), [(None, "no such file"), ("\n", "no samples")])
def test_a_missing_or_empty_file_is_said(tmp_path, capsys, content, message):
    file = tmp_path / "s.jsonl"
    if content is not None:
        file.write_text(content)
    assert main(["reward", "exact", str(file)]) == 1
    assert message in capsys.readouterr().err
