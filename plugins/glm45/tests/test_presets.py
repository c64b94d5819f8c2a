import json
from pathlib import Path

import pytest
import rlcore_glm45
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlcore.bridge.inventory import megatron_tensors
from rlcore.rollout.local_weights import unstacked

PRESETS = sorted((Path(rlcore_glm45.__file__).parent / "presets").glob("*.json"))
BILLIONS = {"glm-4.5": 352.8, "glm-4.5-air": 106.9, "glm-4.6": 352.8, "glm-4.7": 352.8}
# In the names of the hub, the draft layer is one more layer of experts and these.
DRAFT = (
    "embed_tokens.weight",
    "enorm.weight",
    "hnorm.weight",
    "eh_proj.weight",
    "shared_head.norm.weight",
    "shared_head.head.weight",
)


def published_shapes(config):
    """Names and shapes, by transformers, of the checkpoint that belongs to a config.json; no draft layer."""
    fields = dict(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    return {
        hub_name: tuple(part.shape)
        for name, tensor in model.state_dict().items()
        for hub_name, part in unstacked(name, tensor)
    }


def draft_names(config, published):
    """Names of the draft layer: those of the last layer, counted on, and its own."""
    last, draft = (f"model.layers.{config['num_hidden_layers'] - 1 + n}." for n in range(2))
    as_last = [draft + name.removeprefix(last) for name in published if name.startswith(last)]
    return [*as_last, *(draft + name for name in DRAFT)]


def test_the_published_models_have_presets():
    assert {preset.stem for preset in PRESETS} == BILLIONS.keys()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.stem)
def test_every_published_tensor_has_its_place_and_shape(build, preset):
    config = json.loads(preset.read_text())
    published = published_shapes(config)
    spec, bridge, stages = build(config, meta=True)
    own = megatron_tensors(stages)
    names = [*published, *draft_names(config, published)]
    assert not list(bridge.coverage(names, own).problems(preset.stem))
    for name, tensor in own.items():
        entry = bridge.by_megatron[name]
        shapes = entry.transform.source_shapes(tuple(tensor.shape), tp=1)
        assert shapes == tuple(published[hf] for hf in entry.hf)
    elements = sum(torch.Size(shape).numel() for shape in published.values())
    biases = sum(tensor.numel() for name, tensor in own.items() if name.endswith("expert_bias"))
    assert spec.parameters == elements - biases
    assert round(elements / 1e9, 1) == BILLIONS[preset.stem]
