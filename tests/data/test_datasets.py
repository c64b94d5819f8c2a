import pytest

from rlcore.config.generation import Dataset
from rlcore.data.datasets import load_rows
from rlcore.errors import RlcoreError


def problems_of(path, **settings):
    with pytest.raises(RlcoreError) as caught:
        load_rows(Dataset(path=path, **settings))
    return [str(problem) for problem in caught.value.problems]


def test_a_row_gives_prompt_label_metadata_and_tools(write_rows):
    chat = [{"role": "user", "content": "1 + 1?"}]
    path = write_rows({"prompt": chat, "label": "2", "metadata": {"level": 1}, "tools": '[{"name": "f"}]'})
    [row] = load_rows(Dataset(path=path))
    assert (row.prompt, row.label, row.metadata, row.tools) == (chat, "2", {"level": 1}, [{"name": "f"}])
    assert row.place == f"{path}:1"


def test_keys_are_chosen_by_the_recipe(write_rows):
    path = write_rows({"question": "1 + 1?", "answer": 2})
    [row] = load_rows(Dataset(path=path, prompt_key="question", label_key="answer"))
    assert (row.prompt, row.label) == ("1 + 1?", "2")


@pytest.mark.parametrize(("bounds", "prompts"), [("1:3", "bc"), (":2", "ab"), ("-2:", "cd"), ("3:99", "d")])
def test_a_slice_of_the_rows_is_read(write_rows, bounds, prompts):
    path = write_rows(*({"prompt": letter} for letter in "abcd"))
    assert "".join(row.prompt for row in load_rows(Dataset(path=f"{path}@[{bounds}]"))) == prompts


def test_bad_rows_outside_the_slice_do_not_matter(write_rows):
    path = write_rows({"prompt": "a"}, "not json")
    assert len(load_rows(Dataset(path=f"{path}@[:1]"))) == 1


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n\n  \n{"prompt": "b"}\n')
    assert [row.place for row in load_rows(Dataset(path=path))] == [f"{path}:1", f"{path}:4"]


def test_parquet_rows_are_read_like_json_lines(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"prompt": [{"role": "user", "content": "hi"}]}]), path)
    assert load_rows(Dataset(path=path))[0].prompt == [{"role": "user", "content": "hi"}]


def test_every_bad_row_is_named_at_once_with_its_line(write_rows):
    path = write_rows({"prompt": "fine"}, "{bad", [1], {"promt": "x"}, {"prompt": 3}, {"prompt": ""})
    found = problems_of(path)
    assert [text.split(": ")[0] for text in found] == [f"{path}:{line}" for line in (2, 3, 4, 5, 6)]
    assert "not JSON" in found[0]
    assert "did you mean 'promt'?" in found[2]
    assert "prompt is a number (3)" in found[3]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "label": ["4"]}, 'label is a list (["4"])'),
        ({"prompt": "x", "label": True}, "label is a boolean (true)"),
        ({"prompt": "x", "metadata": "m"}, 'metadata is a text ("m")'),
        ({"prompt": "x", "tools": "{"}, 'tools is a text ("{")'),
        ({"prompt": "x", "tools": [1]}, "tools is a list ([1])"),
        ({"prompt": ["x"]}, 'prompt[0] is a text ("x")'),
        ({"prompt": [{"content": "x"}]}, "prompt[0].role is missing"),
        ({"prompt": [{"role": "user", "content": None}]}, "prompt[0].content is missing"),
    ],
)
def test_a_field_of_the_wrong_type_is_shown(write_rows, row, message):
    assert message in problems_of(write_rows(row))[0]


def test_all_problems_of_one_row_are_shown(write_rows):
    assert len(problems_of(write_rows({"prompt": 1, "label": [], "metadata": 2}))) == 3


def test_many_bad_rows_are_shortened(write_rows):
    found = problems_of(write_rows(*["bad"] * 50))
    assert len(found) == 21
    assert found[-1].endswith("and 30 more problems like these")


def test_a_byte_that_is_not_utf8_is_located(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    assert "rows.jsonl:2: not UTF-8 (byte 0xff at column 13)" in problems_of(path)[0]


def test_a_label_key_that_the_recipe_names_must_be_there(write_rows):
    path = write_rows({"prompt": "x", "label": "1"})
    assert "did you mean 'label'?" in problems_of(path, label_key="labels")[0]
    assert load_rows(Dataset(path=write_rows({"prompt": "x"})))[0].label is None


def test_chat_messages_need_the_chat_template(write_rows):
    path = write_rows({"prompt": [{"role": "user", "content": "x"}]})
    assert "chat_template: true" in problems_of(path, chat_template=False)[0]


def test_a_missing_file_suggests_its_neighbour(write_rows):
    path = write_rows({"prompt": "x"}, name="train.jsonl")
    assert f"did you mean {path}?" in problems_of(path.with_name("trian.jsonl"))[0]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl@[1]", "rows.jsonl@[a:b]", "rows"])
def test_a_path_that_is_no_dataset_is_refused(tmp_path, name):
    assert name in problems_of(tmp_path / name)[0]


@pytest.mark.parametrize("bounds", ["", "@[5:]"])
def test_no_rows_is_an_error(write_rows, bounds):
    path = write_rows("") if not bounds else write_rows({"prompt": "x"})
    assert "the dataset has no rows" in problems_of(f"{path}{bounds}")[0]


def test_a_damaged_parquet_file_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 nonsense")
    assert "not a Parquet file" in problems_of(path)[0]
