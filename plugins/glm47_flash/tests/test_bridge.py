import pytest
import torch
from transformers import AutoModelForCausalLM

from rlcore.bridge.export import Exporter, save_hf
from rlcore.bridge.load import load_hf
from rlcore.errors import RlcoreError
from rlcore.testing.tiny import rewrite, tensors_of

DRAFT = {"num_nextn_predict_layers": 1}


def add_draft_layer(tensors):
    """Add what transformers drops: a further layer, norms and a projection of its own, and repeated tables."""
    last, draft = "model.layers.2.", "model.layers.3."
    copies = {
        draft + name.removeprefix(last): t.clone() for name, t in tensors.items() if name.startswith(last)
    }
    own = {f"{norm}.weight": torch.randn(64) for norm in ("enorm", "hnorm", "shared_head.norm")}
    repeated = {"embed_tokens": "model.embed_tokens", "shared_head.head": "lm_head"}
    own |= {f"{name}.weight": tensors[f"{of}.weight"].clone() for name, of in repeated.items()}
    tensors |= copies | {draft + name: t for name, t in own.items()}
    tensors[f"{draft}eh_proj.weight"] = torch.randn(64, 128)


def halve(tensors):
    """Store as published: all in bfloat16 but the biases of routers."""
    tensors |= {n: t.bfloat16() for n, t in tensors.items() if not n.endswith("e_score_correction_bias")}


SHAPES = [
    {},
    {"num_attention_heads": 3, "num_key_value_heads": 3, "q_lora_rank": 40, "v_head_dim": 16},
    {"mlp_layer_types": ["sparse", "dense", "sparse"], "n_routed_experts": 6, "n_shared_experts": 2},
    {"tie_word_embeddings": True},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_checkpoint_comes_back_bit_for_bit(build, make_checkpoint, tmp_path, shape):
    assert_round_trip(build, make_checkpoint(**shape), tmp_path / "saved")


@pytest.mark.parametrize("change", [lambda tensors: None, halve], ids=["float32", "bfloat16"])
def test_so_does_the_draft_layer_which_transformers_would_drop(build, make_checkpoint, tmp_path, change):
    folder = make_checkpoint(**DRAFT)
    rewrite(folder, add_draft_layer)
    rewrite(folder, change)
    assert_round_trip(build, folder, tmp_path / "saved")


def assert_round_trip(build, folder, saved):
    _, bridge, stages = build(folder)
    load_hf(stages, bridge, folder)
    save_hf(Exporter(stages, bridge), saved, source=folder, shard_bytes=40_000)
    original, copies = tensors_of(folder), tensors_of(saved)
    assert original.keys() == copies.keys()
    assert all(torch.equal(original[name], copies[name]) for name in original)
    assert all(original[name].dtype == copies[name].dtype for name in original)


def test_a_saved_checkpoint_opens_in_transformers(build, make_checkpoint, tmp_path):
    folder = make_checkpoint()
    _, bridge, stages = build(folder)
    load_hf(stages, bridge, folder)
    save_hf(Exporter(stages, bridge), tmp_path / "saved", source=folder)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values())


def test_a_missing_expert_is_named_with_what_needs_it(build, make_checkpoint):
    folder = make_checkpoint()
    name = "model.layers.1.mlp.experts.5.up_proj.weight"
    rewrite(folder, lambda tensors: tensors.pop(name))
    _, bridge, stages = build(folder)
    with pytest.raises(RlcoreError) as error:
        load_hf(stages, bridge, folder)
    (problem,) = error.value.problems
    parameter = "decoder.layers.1.mlp.experts.linear_fc1.weight5"
    assert problem.message == f"{parameter} needs {name}, which the checkpoint lacks"


def test_a_latent_of_another_rank_is_named(build, make_checkpoint, config):
    folder = make_checkpoint()
    _, bridge, stages = build({**config, "kv_lora_rank": 24})
    with pytest.raises(RlcoreError) as error:
        load_hf(stages, bridge, folder)
    messages = [problem.message for problem in error.value.problems]
    assert "model.layers.0.self_attn.kv_a_layernorm.weight has shape [32], the model needs [24]" in messages
    assert len(messages) == 3 * 3
