import json
import shutil

import pytest
import torch
from rlcore_glm4.demo import DEMO
from safetensors.torch import load_file, save_file

from rlcore.bridge.transforms import FusedGated, Run
from rlcore.cli.main import main
from rlcore.testing.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sound")
    tiny_checkpoint(folder, DEMO.config, jitter=0.05)
    return folder


@pytest.fixture
def checkpoint(sound, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(sound, tmp_path / "checkpoint")


@pytest.fixture
def verify(capsys):
    """Run the command; gives its exit code, what it printed and what it complained of."""

    def run(*arguments):
        capsys.readouterr()
        code = main(["verify", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_sound_checkpoint_has_parity(verify, sound):
    code, out, err = verify(sound, "--parity", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["model_type"] == DEMO.config["model_type"]
    assert found["unmapped_hf"] == found["unmapped_megatron"] == found["problems"] == []
    assert 0 < found["max_rel_logit_diff"] <= min(3e-6, 2 * found["reference_noise"])
    assert found["tokens"] == 145


def test_a_person_reads_the_verdict(verify, sound):
    code, out, _ = verify(sound, "--parity")
    assert code == 0
    assert "parity      holds" in out
    assert out.endswith("sound\n")


def test_without_parity_there_are_no_figures(verify, sound):
    code, out, _ = verify(sound, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["max_rel_logit_diff"] is found["reference_noise"] is found["tokens"] is None


def test_names_shapes_types_and_values_are_reported_together(verify, checkpoint):
    def spoil(tensors):
        tensors["stray"] = torch.zeros(2)
        del tensors["model.norm.weight"]
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
        tensors["model.layers.0.mlp.down_proj.weight"][0] = torch.inf
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].half()

    rewrite(checkpoint, spoil)
    code, out, _ = verify(checkpoint, "--json", "--parity")
    found = json.loads(out)
    assert code == 1
    assert found["unmapped_hf"] == ["stray"]
    assert found["unmapped_megatron"] == ["decoder.final_layernorm.weight"]
    messages = [problem["message"] for problem in found["problems"]]
    assert messages == [
        "lm_head.weight has shape [265, 64], the model needs [266, 64]",
        "model.embed_tokens.weight has type F16, config.json says torch.float32",
        "model.layers.0.mlp.down_proj.weight holds NaN or infinite values",
    ]
    assert found["max_rel_logit_diff"] is None


def test_weights_of_another_order_fail_parity(verify, checkpoint, monkeypatch):
    """A bridge that swaps gate and up passes every check of names and shapes."""
    half = DEMO.config["intermediate_size"]
    monkeypatch.setattr(FusedGated, "runs", lambda *_: [Run(0, half, 2 * half), Run(0, 0, half)])
    code, out, _ = verify(checkpoint, "--parity")
    assert code == 1
    assert "parity      fails" in out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "is not a folder"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "names no model_type"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "gml4"}'), "did you mean"),
        (lambda folder: edit(folder, dtype="float99"), "dtype 'float99' is no type of torch"),
        (lambda folder: edit(folder, hidden_size="wide"), "hidden_size must be a whole number, not 'wide'"),
        (lambda folder: edit(folder, rms_norm_eps=None), "rms_norm_eps must be a number, not None"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no *.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"123"), "truncated or damaged"),
    ],
)
def test_what_cannot_be_read_is_one_clear_message(verify, checkpoint, spoil, message):
    spoil(checkpoint)
    code, out, err = verify(checkpoint)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
