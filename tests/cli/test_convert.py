import json

import pytest
from rlcore_glm45.demo import DEMO

from rlcore.bridge.convert import BEGUN
from rlcore.cli.main import main
from rlcore.testing.tiny import rewrite, tiny_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    tiny_checkpoint(folder, DEMO.config, jitter=0.05)
    return folder


@pytest.fixture
def convert(capsys, source):
    """Run the command; gives its exit code, what it printed and what it said beside it."""

    def run(target, *options):
        capsys.readouterr()
        code = main(["convert", "to-fp8", str(source), str(target), *options])
        return code, *capsys.readouterr()

    return run


def test_a_checkpoint_is_converted_in_blocks_of_128_and_found_the_same(convert, tmp_path):
    code, out, progress = convert(tmp_path / "fp8", "--json")
    report = json.loads(out)
    assert (code, report["written"], report["passed_over"]) == (0, 1, 0)
    assert progress == "model.safetensors, 1 of 1\n"
    settings = json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"]
    assert settings["weight_block_size"] == [128, 128]
    assert convert(tmp_path / "fp8", "--check")[0] == 0


def test_the_same_command_goes_on_where_it_was_cut_off(convert, source, tmp_path):
    target = tmp_path / "fp8"
    convert(target)
    (target / "config.json").unlink()
    (target / BEGUN).write_text(json.dumps({"source": str(source), "weight_block_size": [128, 128]}))
    code, _, progress = convert(target)
    assert (code, progress) == (0, "1 of 1 files are whole already\n")
    assert (target / "config.json").is_file()


def test_a_finished_target_is_not_written_again(convert, tmp_path):
    convert(tmp_path / "fp8")
    code, _, refused = convert(tmp_path / "fp8")
    assert (code, "--check compares" in refused) == (1, True)


def test_check_names_what_differs_and_ends_with_1(convert, tmp_path):
    convert(tmp_path / "fp8")
    rewrite(tmp_path / "fp8", lambda tensors: tensors["model.norm.weight"].add_(1))
    code, out, found = convert(tmp_path / "fp8", "--check")
    assert (code, out) == (1, "not the same\n")
    assert "model.norm.weight: differs" in found
    assert json.loads(convert(tmp_path / "fp8", "--check", "--json")[1])["differences"]


def test_an_unfinished_target_is_not_compared(convert, tmp_path):
    (tmp_path / BEGUN).write_text("{}")
    code, _, refused = convert(tmp_path, "--check")
    assert (code, "is not finished" in refused) == (1, True)


def test_a_block_without_values_is_wrong_usage(convert, tmp_path):
    with pytest.raises(SystemExit) as end:
        convert(tmp_path / "fp8", "--block", "0", "128")
    assert end.value.code == 2
