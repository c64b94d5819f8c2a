import json

import pytest
import torch
from safetensors.torch import save_file

from rlcore.bridge.safetensors_io import INDEX, SafetensorsFolder, write_folder
from rlcore.errors import RlcoreError

TENSORS = {f"t{i}": torch.randn(4, 3 + i) for i in range(5)}


@pytest.fixture
def sharded(tmp_path):
    write_folder(tmp_path, TENSORS.items(), shard_bytes=130)
    return tmp_path


def test_what_is_written_is_read_back(sharded):
    with SafetensorsFolder(sharded) as folder:
        assert folder.tensors.keys() == TENSORS.keys()
        assert all(torch.equal(folder.tensor(name), tensor) for name, tensor in TENSORS.items())


def test_slices_read_a_part(sharded):
    with SafetensorsFolder(sharded) as folder:
        assert torch.equal(folder.slice("t2")[1:3], TENSORS["t2"][1:3])


def test_files_are_numbered_and_the_index_names_them(sharded):
    names = sorted(path.name for path in sharded.glob("*.safetensors"))
    count = len(names)
    assert count > 1
    assert names == [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    index = json.loads((sharded / INDEX).read_text())
    assert index["weight_map"].keys() == TENSORS.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())


def test_one_file_needs_no_index(tmp_path):
    write_folder(tmp_path, TENSORS.items(), shard_bytes=10**6)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_others_may_read_what_they_may_read_of_any_file(tmp_path):
    (tmp_path / "any").touch()
    write_folder(tmp_path, TENSORS.items(), shard_bytes=10**6)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_views_into_one_memory_are_written_apart(tmp_path):
    whole = torch.arange(6.0)
    write_folder(tmp_path, [("a", whole[:2]), ("b", whole[2:]), ("c", whole)], shard_bytes=10**6)
    with SafetensorsFolder(tmp_path) as folder:
        assert folder.tensor("b").tolist() == [2, 3, 4, 5]


def test_every_missing_and_truncated_file_is_named_at_once(sharded):
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-20])
    with pytest.raises(RlcoreError) as error:
        SafetensorsFolder(sharded)
    missing, damaged = error.value.problems
    assert missing.place == str(first)
    assert "is missing" in missing.message
    assert damaged.place == str(second)
    assert "truncated" in damaged.message


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_a_broken_index_is_named(sharded, content):
    (sharded / INDEX).write_text(content)
    with pytest.raises(RlcoreError, match="is no index"):
        SafetensorsFolder(sharded)


def test_a_folder_without_weights_is_an_error(tmp_path):
    with pytest.raises(RlcoreError, match=r"holds no \*\.safetensors"):
        SafetensorsFolder(tmp_path)


def test_a_file_that_is_no_safetensors_is_named(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"<html>not found</html>")
    with pytest.raises(RlcoreError, match=r"model\.safetensors: is truncated or damaged"):
        SafetensorsFolder(tmp_path)
