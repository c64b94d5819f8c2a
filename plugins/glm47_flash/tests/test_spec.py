import pytest
import torch
from rlcore_glm47_flash.spec import flash_spec
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from rlcore.errors import RlcoreError


@pytest.mark.parametrize(
    "changes", [{}, {"n_shared_experts": 2, "mlp_layer_types": ["sparse", "dense", "sparse"]}]
)
def test_parameters_are_counted_as_built(build, changes, config):
    spec, _, (model,) = build({**config, **changes}, meta=True)
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    for layer, info in zip(model.decoder.layers, spec.layers, strict=True):
        assert info.parameters == sum(parameter.numel() for parameter in layer.parameters())


@pytest.mark.parametrize("length", [1, 16, 100])
def test_flops_are_those_of_the_reference_and_of_chosen_experts_only(length, config):
    fields = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("glm4_moe_lite", **fields),
        attn_implementation="eager",
        experts_implementation="eager",
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, length, dtype=torch.long))
    # The reference computes all pairs of tokens, the causal half of which counts.
    key, value = config["qk_nope_head_dim"] + config["qk_rope_head_dim"], config["v_head_dim"]
    pairs = 2 * length**2 * config["num_attention_heads"] * (key + value) * config["num_hidden_layers"]
    rotary = 2 * length * config["qk_rope_head_dim"] / 2
    expected = counter.get_total_flops() - pairs + pairs * (length + 1) / (2 * length)
    assert flash_spec(config).flops(length) == pytest.approx(expected, abs=2 * rotary)


def kinds(config):
    return [layer.kind for layer in flash_spec(config).layers]


def test_one_dense_layer_comes_first_unless_each_layer_is_named(config):
    assert kinds(config) == ["dense", "moe", "moe"]
    assert kinds({**config, "first_k_dense_replace": 1}) == ["dense", "moe", "moe"]
    named = {**config, "first_k_dense_replace": 1, "mlp_layer_types": ["sparse", "dense", "sparse"]}
    assert kinds(named) == ["moe", "dense", "moe"]


def test_every_missing_key_is_named_at_once(config):
    del config["hidden_size"], config["rms_norm_eps"]
    with pytest.raises(RlcoreError) as error:
        flash_spec(config)
    messages = [problem.message for problem in error.value.problems]
    assert messages == ["lacks hidden_size", "lacks rms_norm_eps"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_k_dense_replace": 2}, "first_k_dense_replace 2 alone is read in two ways"),
        ({"mlp_layer_types": ["dense"]}, "mlp_layer_types must say dense or sparse for each of 3 layers"),
        ({"mlp_layer_types": ["dense", "moe", "moe"]}, "mlp_layer_types must say dense or sparse"),
        ({"attention_bias": True}, "attention_bias True is not supported"),
    ],
)
def test_what_cannot_be_is_refused_by_name(config, changes, message):
    with pytest.raises(RlcoreError, match=message):
        flash_spec({**config, **changes})
