import json

import pytest

from rlcore.errors import RlcoreError
from rlcore.telemetry.files import JsonLines, plain, read_json_lines, write_json, write_text


def test_values_that_json_cannot_hold_become_null_or_text(tmp_path):
    value = {"nan": float("nan"), "inf": float("inf"), "path": tmp_path, "list": (1, 2.5, True)}
    assert plain(value) == {"nan": None, "inf": None, "path": str(tmp_path), "list": [1, 2.5, True]}


def test_scalars_of_torch_are_written_as_numbers():
    torch = pytest.importorskip("torch")
    assert plain({"loss": torch.tensor(0.5), "kl": torch.tensor(float("nan"))}) == {"loss": 0.5, "kl": None}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_text(tmp_path / "file.txt", "old")
    with pytest.raises(TypeError):
        write_text(path, 5)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["file.txt"]


def test_json_files_hold_no_nan(tmp_path):
    assert json.loads(write_json(tmp_path / "a.json", {"x": float("nan")}).read_text()) == {"x": None}


def test_a_torn_last_line_is_passed_over_and_then_replaced(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_json_lines(path) == [{"a": 1}, {"a": 2}]
    with JsonLines(path) as lines:
        lines.append({"a": 3})
    assert read_json_lines(path) == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\noops\n{"a": 2}\n')
    with pytest.raises(RlcoreError, match=r"log\.jsonl:2"):
        read_json_lines(path)


def test_a_file_that_is_not_there_has_no_records(tmp_path):
    assert read_json_lines(tmp_path / "none.jsonl") == []


def test_text_of_any_kind_survives(tmp_path):
    hostile = {"line separators": "a\u2028b\x85c\x0bd\n", "lone surrogate": "\ud800", "other": "数学 🙂"}
    with JsonLines(tmp_path / "log.jsonl") as lines:
        lines.append(hostile)
        lines.append({"a": 1})
    assert read_json_lines(tmp_path / "log.jsonl") == [hostile, {"a": 1}]
