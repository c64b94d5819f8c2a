import json
from pathlib import Path

import pytest
import rlcore_glm47_flash
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlcore.bridge.inventory import megatron_tensors
from rlcore.rollout.local_weights import unstacked

PRESET = Path(rlcore_glm47_flash.__file__).parent / "presets" / "glm-4.7-flash.json"
# In the names of the hub, the draft layer is one more layer of experts and these.
DRAFT = (
    "embed_tokens.weight",
    "enorm.weight",
    "hnorm.weight",
    "eh_proj.weight",
    "shared_head.norm.weight",
    "shared_head.head.weight",
)


@pytest.fixture(scope="module")
def published():
    """Names and shapes of the published checkpoint, by transformers, the draft layer left out."""
    fields = json.loads(PRESET.read_text())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    return {
        hub_name: tuple(part.shape)
        for name, tensor in model.state_dict().items()
        for hub_name, part in unstacked(name, tensor)
    }


def draft_names(published):
    """Names of the draft layer: those of the last layer, counted on, and its own."""
    last, draft = "model.layers.46.", "model.layers.47."
    as_last = [draft + name.removeprefix(last) for name in published if name.startswith(last)]
    return [*as_last, *(draft + name for name in DRAFT)]


def test_every_published_tensor_has_its_place_and_shape(build, published):
    _, bridge, stages = build(json.loads(PRESET.read_text()), meta=True)
    own = megatron_tensors(stages)
    assert not list(bridge.coverage([*published, *draft_names(published)], own).problems(PRESET.stem))
    for name, tensor in own.items():
        entry = bridge.by_megatron[name]
        shapes = entry.transform.source_shapes(tuple(tensor.shape), tp=1)
        assert shapes == tuple(published[hf] for hf in entry.hf)


def test_the_published_model_has_30_billion_parameters(build, published):
    spec, _, stages = build(json.loads(PRESET.read_text()), meta=True)
    elements = sum(torch.Size(shape).numel() for shape in published.values())
    biases = sum(t.numel() for name, t in megatron_tensors(stages).items() if name.endswith("expert_bias"))
    assert spec.parameters == elements - biases
    assert round(elements / 1e9, 1) == 29.9
