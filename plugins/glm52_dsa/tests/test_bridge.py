import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlcore.bridge.export import Exporter, save_hf
from rlcore.bridge.load import load_hf
from rlcore.errors import RlcoreError
from rlcore.testing.tiny import tiny_mtp_layer

DRAFT = {"num_nextn_predict_layers": 1}
ALL_FULL = {"index_topk_freq": 1}
SHARED = {"indexer_types": ["full", "shared", "full", "shared"]}


def tensors_of(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def rewrite(folder, change):
    """Let `change` alter the tensors of a checkpoint."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def halve(tensors):
    """Store as published: all in bfloat16 but the biases of routers."""
    tensors |= {n: t.bfloat16() for n, t in tensors.items() if not n.endswith("e_score_correction_bias")}


def indexers(names):
    return sorted({name.split(".self_attn")[0] for name in names if "indexer" in name})


def assert_round_trip(build, folder, saved, **keywords):
    _, bridge, stages = build(folder, **keywords)
    load_hf(stages, bridge, folder)
    save_hf(Exporter(stages, bridge), saved, source=folder, shard_bytes=40_000)
    original, copies = tensors_of(folder), tensors_of(saved)
    assert original.keys() == copies.keys()
    assert all(torch.equal(original[name], copies[name]) for name in original)
    assert all(original[name].dtype == copies[name].dtype for name in original)


SHAPES = [
    {},
    ALL_FULL,
    SHARED,
    {"num_attention_heads": 3, "num_key_value_heads": 3, "q_lora_rank": 40, "index_head_dim": 24},
    {"mlp_layer_types": ["sparse", "dense", "sparse", "dense"], "n_routed_experts": 6, "n_shared_experts": 2},
    {"tie_word_embeddings": True},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_checkpoint_comes_back_bit_for_bit(build, make_checkpoint, tmp_path, shape):
    assert_round_trip(build, make_checkpoint(**shape), tmp_path / "saved")


@pytest.mark.parametrize("built", [0, 1], ids=["passed through", "built"])
@pytest.mark.parametrize("change", [lambda tensors: None, halve], ids=["float32", "bfloat16"])
def test_so_does_the_draft_layer_which_has_its_own_indexer(build, make_checkpoint, tmp_path, change, built):
    folder = make_checkpoint(**SHARED, **DRAFT)
    tiny_mtp_layer(folder, like=2, jitter=0.1)
    rewrite(folder, change)
    assert indexers(tensors_of(folder)) == ["model.layers.0", "model.layers.2", "model.layers.4"]
    assert_round_trip(build, folder, tmp_path / "saved", mtp_layers=built)


def test_a_saved_checkpoint_opens_in_transformers(build, make_checkpoint, tmp_path):
    folder = make_checkpoint()
    _, bridge, stages = build(folder)
    load_hf(stages, bridge, folder)
    save_hf(Exporter(stages, bridge), tmp_path / "saved", source=folder)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values())


def test_a_full_layer_without_its_indexer_is_named_with_what_needs_it(build, make_checkpoint):
    folder = make_checkpoint(**SHARED)
    name = "model.layers.2.self_attn.indexer.k_norm.bias"
    rewrite(folder, lambda tensors: tensors.pop(name))
    _, bridge, stages = build(folder)
    with pytest.raises(RlcoreError) as error:
        load_hf(stages, bridge, folder)
    (problem,) = error.value.problems
    parameter = "decoder.layers.2.self_attention.indexer.k_norm.bias"
    assert problem.message == f"{parameter} needs {name}, which the checkpoint lacks"


def test_an_indexer_where_the_schedule_has_none_is_named(build, make_checkpoint, config):
    folder = make_checkpoint(**ALL_FULL)
    _, bridge, stages = build({**config, **SHARED})
    with pytest.raises(RlcoreError) as error:
        load_hf(stages, bridge, folder)
    messages = [problem.message for problem in error.value.problems]
    extra = "model.layers.3.self_attn.indexer.wk.weight"
    assert f"{extra} is in the checkpoint, but no row of the bridge claims it" in messages
    assert len(messages) == 2 * 5
