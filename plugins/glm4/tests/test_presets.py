import json
from pathlib import Path

import pytest
import rlcore_glm4
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlcore.bridge.inventory import megatron_tensors

PRESETS = sorted((Path(rlcore_glm4.__file__).parent / "presets").glob("*.json"))
BILLIONS = {"glm-4-9b-0414": 9.40, "glm-4-32b-0414": 32.57, "glm-z1-9b-0414": 9.40, "glm-z1-32b-0414": 32.57}


def published_shapes(config):
    """Names and shapes of the checkpoint that belongs to a config.json, by transformers."""
    fields = dict(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_the_four_published_models_have_presets():
    assert {preset.stem for preset in PRESETS} == BILLIONS.keys()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.stem)
def test_every_published_tensor_has_its_place_and_shape(build, preset):
    config = json.loads(preset.read_text())
    published = published_shapes(config)
    spec, bridge, stages = build(config, meta=True)
    own = megatron_tensors(stages)
    assert not list(bridge.coverage(published, own).problems(preset.stem))
    for name, parameter in own.items():
        entry = bridge.by_megatron[name]
        shapes = entry.transform.source_shapes(tuple(parameter.shape), tp=1)
        assert shapes == tuple(published[hf] for hf in entry.hf)
    elements = sum(torch.Size(shape).numel() for shape in published.values())
    assert spec.parameters == elements
    assert round(elements / 1e9, 2) == BILLIONS[preset.stem]
