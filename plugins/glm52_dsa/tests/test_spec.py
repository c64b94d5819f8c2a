import pytest
import torch
from rlcore_glm52_dsa.spec import dsa_spec
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from rlcore.errors import RlcoreError


@pytest.mark.parametrize("changes", [{}, {"n_shared_experts": 2, "index_topk_freq": 1, "num_hidden_layers": 2}])
def test_parameters_are_counted_as_built(build, changes, config):
    spec, _, (model,) = build({**config, **changes, "num_nextn_predict_layers": 1}, meta=True, mtp_layers=1)
    for layer, info in zip(model.decoder.layers, spec.layers, strict=True):
        assert info.parameters == sum(parameter.numel() for parameter in layer.parameters())
    own = sum(parameter.numel() for parameter in model.mtp.layers[0].parameters())
    assert spec.mtp_layers[0].parameters == own
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters()) - own


def flops_of_transformers(config, length):
    fields = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("glm_moe_dsa", **fields),
        attn_implementation="eager",
        experts_implementation="eager",
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, length, dtype=torch.long))
    return counter.get_total_flops()


@pytest.mark.parametrize("length", [1, 16, 100])
def test_flops_are_those_of_the_reference_and_of_chosen_experts_and_keys_only(length, config):
    # The reference scores and sees all pairs of tokens, at the widths of keys and values.
    layers, full = config["num_hidden_layers"], 3
    heads, index_heads = config["num_attention_heads"], config["index_n_heads"]
    key, value = config["qk_nope_head_dim"] + config["qk_rope_head_dim"], config["v_head_dim"]
    seen = 2 * length**2 * heads * (key + value) * layers
    scored = 2 * length**2 * index_heads * (config["index_head_dim"] + 1) * full

    chosen = sum(min(token + 1, config["index_topk"]) for token in range(length))
    widths = 2 * config["kv_lora_rank"] + config["qk_rope_head_dim"]
    ours = 2 * chosen * heads * widths * layers + scored * (length + 1) / (2 * length)
    expected = flops_of_transformers(config, length) - seen - scored + ours
    rotary = 2 * length * config["qk_rope_head_dim"] / 2
    assert dsa_spec(config).flops(length) == pytest.approx(expected, abs=2 * rotary)


def test_layers_that_share_may_not_start_a_stage(config):
    layers = dsa_spec(config).layers
    assert [layer.kind for layer in layers] == ["dense", "moe", "moe shared", "moe"]
    assert [layer.may_start_stage for layer in layers] == [True, True, False, True]


def test_three_layers_are_dense_unless_config_json_says_otherwise(config):
    def kinds(**changes):
        return [layer.kind for layer in dsa_spec({**config, "index_topk_freq": 1, **changes}).layers]

    del config["first_k_dense_replace"]
    assert kinds() == ["dense", "dense", "dense", "moe"]
    assert kinds(first_k_dense_replace=0) == ["moe"] * 4
    named = ["sparse", "dense", "sparse", "dense"]
    assert kinds(mlp_layer_types=named, first_k_dense_replace=2) == ["moe", "dense"] * 2


def test_every_missing_key_is_named_at_once(config):
    del config["hidden_size"], config["rms_norm_eps"]
    with pytest.raises(RlcoreError) as error:
        dsa_spec(config)
    messages = [problem.message for problem in error.value.problems]
    assert messages == ["lacks hidden_size", "lacks rms_norm_eps"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_layer_types": ["dense"]}, "mlp_layer_types must say dense or sparse for each of 4 layers"),
        ({"attention_bias": True}, "attention_bias True is not supported"),
        ({"index_topk": "all"}, "index_topk must be a whole number"),
        ({"index_head_dim": 4}, "index_head_dim 4 is less than qk_rope_head_dim 8"),
        ({"indexer_rope_interleave": False}, "indexer_rope_interleave false is not supported"),
    ],
)
def test_what_cannot_be_is_refused_by_name(config, changes, message):
    with pytest.raises(RlcoreError, match=message):
        dsa_spec({**config, **changes})
