import pytest
import torch
from rlcore_glm4.spec import glm4_spec
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from rlcore.errors import RlcoreError


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_counted_as_built(build, bias, config):
    spec, _, (model,) = build({**config, "attention_bias": bias}, meta=True)
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    layer = sum(parameter.numel() for parameter in model.decoder.layers[0].parameters())
    assert spec.layers[0].parameters == layer


@pytest.mark.parametrize("length", [1, 16, 100])
def test_flops_are_those_of_the_reference(length, config):
    fields = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("glm4", **fields), attn_implementation="eager"
        )
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, length, dtype=torch.long))
    # The reference computes all pairs of tokens, the causal half of which counts.
    pairs = 4 * length**2 * config["num_attention_heads"] * config["head_dim"] * config["num_hidden_layers"]
    rotary = 2 * length * 4
    expected = counter.get_total_flops() - pairs + pairs * (length + 1) / (2 * length)
    assert glm4_spec(config).flops(length) == pytest.approx(expected, abs=2 * rotary)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "partial_rotary_factor": 0.25},
        {"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.25, "rope_type": "default"}},
    ],
)
def test_rope_is_read_from_where_either_transformers_writes_it(rope, config):
    arguments = glm4_spec({**config, **rope}).model_args
    assert (arguments["rotary_base"], arguments["rotary_percent"]) == (5e5, 0.25)


def test_rope_scaling_is_refused_by_name(config):
    with pytest.raises(RlcoreError, match="rope type 'yarn' is not supported"):
        glm4_spec({**config, "rope_scaling": {"type": "yarn", "factor": 4.0}})


def test_every_missing_key_is_named_at_once(config):
    del config["hidden_size"], config["rms_norm_eps"]
    with pytest.raises(RlcoreError) as error:
        glm4_spec(config)
    assert [problem.message for problem in error.value.problems] == ["lacks hidden_size", "lacks rms_norm_eps"]


def test_heads_must_share_key_heads_evenly(config):
    with pytest.raises(RlcoreError, match="4 is no multiple of num_key_value_heads 3"):
        glm4_spec({**config, "num_key_value_heads": 3})
