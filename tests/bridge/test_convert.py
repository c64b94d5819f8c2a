"""FP8 checkpoints made of others: what is converted, how exactly, and that a cut-off changes nothing."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from rlcore_glm45.demo import DEMO

from rlcore.bridge.convert import BEGUN, Conversion, differences
from rlcore.bridge.fp8 import quantized, read_fp8_format
from rlcore.bridge.safetensors_io import SafetensorsFolder, write_folder
from rlcore.errors import RlcoreError
from rlcore.models.hf_config import read_hf_config
from rlcore.testing.tiny import rewrite, tensors_of, tiny_checkpoint, tiny_mtp_layer

BLOCK = (16, 32)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny mixture of experts in bf16, with an MTP layer, in several files."""
    whole, folder = (tmp_path_factory.mktemp(name) for name in ("whole", "source"))
    tiny_checkpoint(whole, DEMO.config | {"num_nextn_predict_layers": 1}, jitter=0.05)
    tiny_mtp_layer(whole)
    kept = "e_score_correction_bias"
    tensors = {name: t if name.endswith(kept) else t.bfloat16() for name, t in tensors_of(whole).items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    write_folder(folder, tensors.items(), shard_bytes=size // 3)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def convert(source, target, block=BLOCK, *, files=None, finish=True):
    with SafetensorsFolder(source) as opened:
        conversion = Conversion(opened, target, read_hf_config(source), block)
        conversion.begin()
        for file in conversion.left()[:files]:
            conversion.write(file)
        if finish:
            conversion.finish()
    return target


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    return convert(source, tmp_path_factory.mktemp("made") / "fp8")


def different(source, target):
    with SafetensorsFolder(source) as files:
        return [str(problem) for problem in differences(files, target, read_hf_config(target))]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_matrices_of_linear_layers_are_converted_and_nothing_else(source, made):
    fp8 = read_fp8_format(made, read_hf_config(made))
    kept = {
        name.split("model.layers.")[-1].lstrip("0123456789.") for name in tensors_of(source).keys() - fp8.names
    }
    assert fp8.block == BLOCK
    assert {name for name in kept if "norm" not in name and not name.endswith("bias")} == {
        "model.embed_tokens.weight",
        "lm_head.weight",
        "mlp.gate.weight",
        "eh_proj.weight",
        "embed_tokens.weight",
        "shared_head.head.weight",
    }
    assert all(name.split(".")[-2].endswith("_proj") for name in fp8.names)


def test_what_is_not_converted_is_what_config_json_excepts(source, made):
    excepted = read_hf_config(made)["quantization_config"]["modules_to_not_convert"]
    assert {f"{module}.weight" for module in excepted} == {
        name
        for name in tensors_of(source).keys() - read_fp8_format(made, read_hf_config(made)).names
        if name.endswith(".weight")
    }


def test_the_tensors_are_those_that_a_sync_makes_of_the_source_bit_for_bit(source, made):
    fp8, found = read_fp8_format(made, read_hf_config(made)), tensors_of(made)
    expected = dict(quantized(tensors_of(source).items(), fp8))
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == expected[name].dtype for name in found)
    assert all(torch.equal(found[name].float(), expected[name].float()) for name in found)


def test_the_folder_has_the_rest_of_the_source_and_its_own_index(source, made):
    assert {path.name for path in made.iterdir()} == {path.name for path in source.iterdir()}
    index = json.loads((made / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors_of(made).keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors_of(made).values())


def test_a_conversion_that_was_cut_off_goes_on_and_ends_the_same(source, made, tmp_path):
    cut_off = convert(source, tmp_path / "fp8", files=1, finish=False)
    (cut_off / "model-00002-of-00004.safetensors.partial").write_bytes(b"half")
    assert not (cut_off / "config.json").exists()
    first = next(cut_off.glob("*.safetensors"))
    written = first.stat().st_mtime_ns
    assert contents(convert(source, cut_off)) == contents(made)
    assert first.stat().st_mtime_ns == written


def test_what_was_begun_with_other_blocks_is_not_mixed(source, tmp_path):
    begun = convert(source, tmp_path / "fp8", files=1, finish=False)
    with pytest.raises(RlcoreError, match="in blocks of 16 x 32"):
        convert(source, begun, (128, 128))


def test_a_disk_that_fills_leaves_what_the_same_call_goes_on_with(source, made, tmp_path, full_disk):
    with full_disk(2000), pytest.raises(RlcoreError, match="cannot be written"):
        convert(source, tmp_path / "fp8")
    assert (tmp_path / "fp8" / BEGUN).is_file()
    assert contents(convert(source, tmp_path / "fp8")) == contents(made)


def test_a_target_that_cannot_be_made_is_named(source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RlcoreError, match="fp8: cannot be written"):
        convert(source, tmp_path / "file" / "fp8")


def test_a_conversion_is_the_same_as_its_source_to_rounding(source, made):
    assert different(source, made) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("lm_head.weight"), "lm_head.weight: is missing"),
        (lambda tensors: tensors["lm_head.weight"].add_(1), "though it is not quantized"),
        (lambda tensors: tensors["model.layers.0.mlp.up_proj.weight_scale_inv"].mul_(1.2), "values are off"),
    ],
)
def test_what_differs_is_named(tmp_path, change, words):
    tiny_checkpoint(tmp_path / "source", DEMO.config)
    made = convert(tmp_path / "source", tmp_path / "fp8")
    rewrite(made, change)
    (found,) = different(tmp_path / "source", made)
    assert words in found


def test_a_quantized_source_is_refused(made, tmp_path):
    with pytest.raises(RlcoreError, match="is quantized already"):
        convert(made, tmp_path / "again")


def test_a_folder_with_something_else_in_it_is_refused(source, tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(RlcoreError, match="is there already"):
        convert(source, tmp_path)


def test_the_source_itself_and_what_is_in_it_are_refused(source):
    for target in (source, source / "fp8"):
        with pytest.raises(RlcoreError, match="which is read"):
            convert(source, target)


def test_a_source_without_linear_layers_is_refused(tmp_path):
    (tmp_path / "source").mkdir()
    write_folder(tmp_path / "source", [("lm_head.weight", torch.ones(4, 4))], shard_bytes=1000)
    (tmp_path / "source" / "config.json").write_text('{"model_type": "any"}')
    with pytest.raises(RlcoreError, match="has no matrix"):
        convert(tmp_path / "source", tmp_path / "fp8")
    assert not (tmp_path / "fp8").exists()


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1))
    with pytest.raises(RlcoreError, match="GiB are free"):
        convert(source, tmp_path / "fp8")
    assert not (tmp_path / "fp8").exists()


def test_values_that_are_not_finite_are_named(tmp_path):
    tiny_checkpoint(tmp_path / "source", DEMO.config)
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(tmp_path / "source", lambda tensors: tensors[name][0, 0].fill_(float("nan")))
    with pytest.raises(RlcoreError, match=f"{name}: holds values that are not finite"):
        convert(tmp_path / "source", tmp_path / "fp8")
