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


def draft_shapes(config, published):
    """The draft layer: another one like the last, what is its own, and the tables that it repeats."""
    last, draft = (f"model.layers.{config['num_hidden_layers'] - 1 + n}." for n in range(2))
    hidden = config["hidden_size"]
    return {
        **{draft + name.removeprefix(last): published[name] for name in published if name.startswith(last)},
        **{f"{draft}{norm}.weight": (hidden,) for norm in ("enorm", "hnorm", "shared_head.norm")},
        f"{draft}eh_proj.weight": (hidden, 2 * hidden),
        f"{draft}embed_tokens.weight": (config["vocab_size"], hidden),
        f"{draft}shared_head.head.weight": (config["vocab_size"], hidden),
    }


def test_the_published_models_have_presets():
    assert {preset.stem for preset in PRESETS} == BILLIONS.keys()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.stem)
def test_every_published_tensor_has_its_place_and_shape(build, preset):
    config = json.loads(preset.read_text())
    published = published_shapes(config)
    spec, bridge, stages = build(config, meta=True, mtp_layers=1)
    own = megatron_tensors(stages)
    whole = published | draft_shapes(config, published)
    assert not list(bridge.coverage(whole, own).problems(preset.stem))
    for name, tensor in own.items():
        entry = bridge.by_megatron[name]
        shapes = entry.transform.source_shapes(tuple(tensor.shape), tp=1)
        assert shapes == tuple(whole[hf] for hf in entry.hf)
    elements = sum(torch.Size(shape).numel() for shape in published.values())
    sizes = {name: t.numel() for name, t in own.items() if not name.endswith("expert_bias")}
    drafting = sum(size for name, size in sizes.items() if name.startswith("mtp."))
    assert spec.parameters == sum(sizes.values()) - drafting
    assert spec.mtp_layers[0].parameters == drafting
    assert round(elements / 1e9, 1) == BILLIONS[preset.stem]
