import json
from pathlib import Path

import pytest
import rlcore_glm47_flash
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlcore.bridge.inventory import megatron_tensors
from rlcore.rollout.local_weights import unstacked

PRESET = Path(rlcore_glm47_flash.__file__).parent / "presets" / "glm-4.7-flash.json"


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


def draft_shapes(published):
    """The draft layer: another one like the last, what is its own, and the tables that it repeats."""
    last, draft = "model.layers.46.", "model.layers.47."
    tables = published["model.embed_tokens.weight"]
    return {
        **{draft + name.removeprefix(last): published[name] for name in published if name.startswith(last)},
        **{f"{draft}{norm}.weight": (2048,) for norm in ("enorm", "hnorm", "shared_head.norm")},
        f"{draft}eh_proj.weight": (2048, 4096),
        f"{draft}embed_tokens.weight": tables,
        f"{draft}shared_head.head.weight": tables,
    }


def test_every_published_tensor_has_its_place_and_shape(build, published):
    _, bridge, stages = build(json.loads(PRESET.read_text()), meta=True, mtp_layers=1)
    own = megatron_tensors(stages)
    whole = published | draft_shapes(published)
    assert not list(bridge.coverage(whole, own).problems(PRESET.stem))
    for name, tensor in own.items():
        entry = bridge.by_megatron[name]
        shapes = entry.transform.source_shapes(tuple(tensor.shape), tp=1)
        assert shapes == tuple(whole[hf] for hf in entry.hf)


def test_the_published_model_has_30_billion_parameters(build, published):
    spec, _, stages = build(json.loads(PRESET.read_text()), meta=True, mtp_layers=1)
    own = {name: t.numel() for name, t in megatron_tensors(stages).items() if not name.endswith("expert_bias")}
    drafting = sum(size for name, size in own.items() if name.startswith("mtp."))
    assert spec.parameters == sum(own.values()) - drafting
    assert spec.mtp_layers[0].parameters == drafting
    elements = sum(torch.Size(shape).numel() for shape in published.values())
    assert round(elements / 1e9, 1) == 29.9
