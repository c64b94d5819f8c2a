import json

import pytest
import torch
from rlcore_glm4.bridge import glm4_bridge
from rlcore_glm4.spec import glm4_spec
from transformers import AutoModelForCausalLM

from rlcore.bridge.export import Exporter, save_hf
from rlcore.bridge.load import load_hf
from rlcore.errors import RlcoreError
from rlcore.testing.tiny import rewrite, tensors_of

SHAPES = [
    {},
    {"attention_bias": False, "num_key_value_heads": 1},
    {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 512},
    {"tie_word_embeddings": True},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_checkpoint_comes_back_bit_for_bit(build, make_checkpoint, tmp_path, shape):
    folder = make_checkpoint(**shape)
    _, bridge, stages = build(folder)
    load_hf(stages, bridge, folder)
    save_hf(Exporter(stages, bridge), tmp_path / "saved", source=folder, shard_bytes=40_000)
    original, saved = tensors_of(folder), tensors_of(tmp_path / "saved")
    assert original.keys() == saved.keys()
    assert all(torch.equal(original[name], saved[name]) for name in original)
    assert all(original[name].dtype == saved[name].dtype for name in original)


def test_a_saved_checkpoint_opens_in_transformers(build, make_checkpoint, tmp_path):
    folder = make_checkpoint()
    (folder / "tokenizer.json").write_text("{}")
    _, bridge, stages = build(folder)
    load_hf(stages, bridge, folder)
    saved = tmp_path / "saved"
    save_hf(Exporter(stages, bridge), saved, source=folder)
    _, info = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not any(info.values())
    assert json.loads((saved / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    assert (saved / "tokenizer.json").exists()
    with pytest.raises(RlcoreError, match="exists already"):
        save_hf(Exporter(stages, bridge), saved, source=folder)


def test_a_bfloat16_checkpoint_is_saved_as_bfloat16(build, make_checkpoint, tmp_path):
    folder = make_checkpoint()
    rewrite(folder, lambda tensors: tensors.update({name: t.bfloat16() for name, t in tensors.items()}))
    _, bridge, stages = build(folder)
    load_hf(stages, bridge, folder)
    save_hf(Exporter(stages, bridge), tmp_path / "saved", source=folder)
    original, saved = tensors_of(folder), tensors_of(tmp_path / "saved")
    assert all(torch.equal(original[name], saved[name]) for name in original)


def test_export_follows_training_without_being_made_again(build, make_checkpoint):
    folder = make_checkpoint()
    _, bridge, (model,) = build(folder)
    load_hf([model], bridge, folder)
    exporter = Exporter([model], bridge)
    before = {name: tensor.clone() for name, tensor in exporter}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name] + 1) for name, tensor in exporter)


def test_nan_weights_are_named(build, make_checkpoint):
    folder = make_checkpoint()
    rewrite(folder, lambda tensors: tensors["model.layers.1.self_attn.k_proj.weight"].fill_(float("nan")))
    _, bridge, stages = build(folder)
    with pytest.raises(RlcoreError) as error:
        load_hf(stages, bridge, folder)
    (problem,) = error.value.problems
    assert problem.message == "model.layers.1.self_attn.k_proj.weight holds NaN or infinite values"


def test_every_missing_stray_and_misshapen_tensor_is_named_at_once(build, make_checkpoint):
    folder = make_checkpoint()

    def spoil(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.7.norm.weight"] = torch.zeros(2)
        tensors["lm_head.weight"] = torch.zeros(3, 64)

    rewrite(folder, spoil)
    _, bridge, (model,) = build(folder)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(RlcoreError) as error:
        load_hf([model], bridge, folder)
    text = str(error.value)
    assert "model.layers.7.norm.weight is in the checkpoint, but no row of the bridge claims it" in text
    assert "decoder.final_layernorm.weight needs model.norm.weight, which the checkpoint lacks" in text
    assert "lm_head.weight has shape [3, 64], the model needs [499, 64]" in text
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name].nan_to_num(), tensor.nan_to_num()) for name, tensor in before.items())


def test_a_bias_that_config_json_denies_is_an_error(build, make_checkpoint):
    folder = make_checkpoint()
    config = json.loads((folder / "config.json").read_text())
    spec = glm4_spec({**config, "attention_bias": False})
    _, _, stages = build(dict(spec.hf_config))
    with pytest.raises(RlcoreError, match=r"q_proj\.bias belongs to .*linear_qkv\.bias, which the model lacks"):
        load_hf(stages, glm4_bridge(spec), folder)
