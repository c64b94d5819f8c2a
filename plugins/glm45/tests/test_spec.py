import pytest
import torch
from rlcore_glm45.spec import glm45_spec
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from rlcore.errors import RlcoreError


@pytest.mark.parametrize(
    "changes", [{}, {"attention_bias": False, "use_qk_norm": False, "n_shared_experts": 2}]
)
def test_parameters_are_counted_as_built(build, changes, config):
    spec, _, (model,) = build({**config, **changes}, meta=True)
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    for layer, info in zip(model.decoder.layers, spec.layers, strict=True):
        assert info.parameters == sum(parameter.numel() for parameter in layer.parameters())


def test_dense_layers_come_first(config):
    spec = glm45_spec({**config, "num_hidden_layers": 5, "first_k_dense_replace": 2})
    assert [layer.kind for layer in spec.layers] == ["dense", "dense", "moe", "moe", "moe"]


@pytest.mark.parametrize("length", [1, 16, 100])
def test_flops_are_those_of_the_reference_and_of_chosen_experts_only(length, config):
    fields = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("glm4_moe", **fields), attn_implementation="eager", experts_implementation="eager"
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, length, dtype=torch.long))
    # The reference computes all pairs of tokens, the causal half of which counts.
    pairs = 4 * length**2 * config["num_attention_heads"] * config["head_dim"] * config["num_hidden_layers"]
    rotary = 2 * length * 4
    expected = counter.get_total_flops() - pairs + pairs * (length + 1) / (2 * length)
    assert glm45_spec(config).flops(length) == pytest.approx(expected, abs=2 * rotary)


def test_every_missing_key_is_named_at_once(config):
    del config["first_k_dense_replace"], config["rms_norm_eps"]
    with pytest.raises(RlcoreError) as error:
        glm45_spec(config)
    messages = [problem.message for problem in error.value.problems]
    assert messages == ["lacks first_k_dense_replace", "lacks rms_norm_eps"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "4 is no multiple of num_key_value_heads 3"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type 'yarn' is not supported"),
        ({"n_routed_experts": "8"}, "n_routed_experts must be a whole number, not '8'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(config, changes, message):
    with pytest.raises(RlcoreError, match=message):
        glm45_spec({**config, **changes})
