import pytest
import torch
from rlcore_glm45.bridge import glm45_bridge
from rlcore_glm45.spec import glm45_spec
from transformers import AutoModelForCausalLM

from rlcore.bridge.export import Exporter, save_hf
from rlcore.bridge.load import load_hf
from rlcore.errors import RlcoreError
from rlcore.testing.tiny import rewrite, tensors_of

BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


def add_draft_layer(tensors):
    """Add what transformers drops: a layer like the last, counted on, and the embedding and head it repeats."""
    for name, tensor in list(tensors.items()):
        if name.startswith("model.layers.2."):
            tensors[name.replace("layers.2.", "layers.3.")] = torch.randn_like(tensor)
    for name, repeated in {"embed_tokens": "model.embed_tokens", "shared_head.head": "lm_head"}.items():
        tensors[f"model.layers.3.{name}.weight"] = tensors[f"{repeated}.weight"].clone()
    for name in "enorm", "hnorm", "shared_head.norm":
        tensors[f"model.layers.3.{name}.weight"] = torch.randn(64)
    tensors["model.layers.3.eh_proj.weight"] = torch.randn(64, 128)


SHAPES = [
    {},
    {"attention_bias": False, "use_qk_norm": False, "num_key_value_heads": 1},
    {"first_k_dense_replace": 0, "n_shared_experts": 2, "n_routed_experts": 12, "tie_word_embeddings": True},
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


def test_the_draft_layer_of_the_source_is_in_what_is_saved(build, make_checkpoint, tmp_path):
    folder = make_checkpoint()
    rewrite(folder, add_draft_layer)
    _, bridge, stages = build(folder)
    load_hf(stages, bridge, folder)
    save_hf(Exporter(stages, bridge), tmp_path / "saved", source=folder)
    original, saved = tensors_of(folder), tensors_of(tmp_path / "saved")
    assert "model.layers.3.mlp.experts.7.down_proj.weight" in saved
    assert original.keys() == saved.keys()
    assert all(torch.equal(original[name], saved[name]) for name in original)


def test_a_saved_checkpoint_opens_in_transformers(build, make_checkpoint, tmp_path):
    folder = make_checkpoint()
    _, bridge, stages = build(folder)
    load_hf(stages, bridge, folder)
    save_hf(Exporter(stages, bridge), tmp_path / "saved", source=folder)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values())


def test_biases_for_choosing_experts_stay_in_fp32_beside_bfloat16_weights(build, make_checkpoint, tmp_path):
    folder = make_checkpoint()

    def shorten(tensors):
        tensors.update({name: t.bfloat16() for name, t in tensors.items() if "correction_bias" not in name})

    rewrite(folder, shorten)
    _, bridge, (model,) = build(folder, dtype=torch.bfloat16)
    load_hf([model], bridge, folder)
    assert torch.equal(model.decoder.layers[1].mlp.router.expert_bias, tensors_of(folder)[BIAS])
    save_hf(Exporter([model], bridge), tmp_path / "saved", source=folder)
    original, saved = tensors_of(folder), tensors_of(tmp_path / "saved")
    assert saved[BIAS].dtype == torch.float32
    assert all(torch.equal(original[name], saved[name]) for name in original)


def test_a_bias_for_choosing_experts_that_was_rounded_is_refused(build, make_checkpoint):
    folder = make_checkpoint()
    rewrite(folder, lambda tensors: tensors.update({BIAS: tensors[BIAS].bfloat16()}))
    _, bridge, stages = build(folder)
    with pytest.raises(RlcoreError) as error:
        load_hf(stages, bridge, folder)
    (problem,) = error.value.problems
    assert problem.message.startswith(f"{BIAS} has type BF16")
    assert "must be torch.float32" in problem.message


def test_a_missing_expert_is_named(build, make_checkpoint):
    folder = make_checkpoint()
    missing = "model.layers.2.mlp.experts.5.up_proj.weight"
    rewrite(folder, lambda tensors: tensors.pop(missing))
    _, bridge, stages = build(folder)
    with pytest.raises(RlcoreError) as error:
        load_hf(stages, bridge, folder)
    (problem,) = error.value.problems
    expert = "decoder.layers.2.mlp.experts.linear_fc1.weight5"
    assert problem.message == f"{expert} needs {missing}, which the checkpoint lacks"


def test_a_layer_beyond_the_last_is_refused_where_config_json_announces_none(config):
    bridge = glm45_bridge(glm45_spec({**config, "num_nextn_predict_layers": 0}))
    coverage = bridge.coverage(["model.layers.3.enorm.weight"], [])
    assert "model.layers.3.enorm.weight" in coverage.unmapped_hf
