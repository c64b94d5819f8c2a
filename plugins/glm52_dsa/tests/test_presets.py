"""The published models, laid out as their recipe says: a rank of each stage, on the meta device."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import rlcore_glm52_dsa
import torch
import torch.distributed as dist
from rlcore_glm52_dsa.bridge import dsa_bridge
from rlcore_glm52_dsa.spec import dsa_spec
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForCausalLM

from rlcore.bridge.inventory import megatron_tensors, tensor_shard
from rlcore.config.load import load_recipe
from rlcore.layout.plan import world_size
from rlcore.models.build import build_model, transformer_config
from rlcore.rollout.local_weights import unstacked
from rlcore.trainer.setup import destroy, initialize

PRESETS = Path(rlcore_glm52_dsa.__file__).parent / "presets"
BILLIONS = {"glm-5": 743.9, "glm-5.2": 743.4}
RECIPE = load_recipe("glm52_dsa/glm5.2-744b").recipe
RANKS = world_size(RECIPE)
STAGES = RECIPE.parallel.pp
OWN_EXPERTS = 256 // RECIPE.parallel.ep


@pytest.fixture(scope="module", params=BILLIONS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def hf_config(name):
    return json.loads((PRESETS / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def published(hf_config):
    """Names and shapes of the published checkpoint, by transformers; the draft layer is like a full one."""
    fields = dict(hf_config)
    with torch.device("meta"):
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        model = AutoModelForCausalLM.from_config(config)
    shapes = {
        hub_name: tuple(part.shape)
        for name, tensor in model.state_dict().items()
        for hub_name, part in unstacked(name, tensor)
    }
    last_full = max(index for index, kind in enumerate(config.indexer_types) if kind == "full")
    return shapes, draft_shapes(shapes, f"model.layers.{last_full}.", "model.layers.78.")


def draft_shapes(shapes, full, draft):
    """The draft layer: another one like a full layer, what is its own, and the tables that it repeats."""
    tables = shapes["model.embed_tokens.weight"]
    return {
        **{draft + name.removeprefix(full): shapes[name] for name in shapes if name.startswith(full)},
        **{f"{draft}{norm}.weight": (6144,) for norm in ("enorm", "hnorm", "shared_head.norm")},
        f"{draft}eh_proj.weight": (6144, 12288),
        f"{draft}embed_tokens.weight": tables,
        f"{draft}shared_head.head.weight": tables,
    }


@pytest.fixture(scope="module")
def spec(hf_config):
    return dsa_spec(hf_config)


@pytest.fixture(scope="module")
def bridge(spec):
    return dsa_bridge(spec)


@pytest.fixture(scope="module")
def stages(spec):
    """Tensors of one rank of each stage, with their shards; others of a stage have other experts."""
    return [tensors_of(spec, rank=stage * RANKS // STAGES + stage) for stage in range(STAGES)]


def tensors_of(spec, rank):
    """Build a rank's part on the meta device, beside others that are not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=RANKS)
    initialize(RECIPE.parallel, seed=0, rank=rank, world_size=RANKS)
    try:
        config = transformer_config(
            spec,
            parallel=RECIPE.parallel,
            dtype=torch.bfloat16,
            recompute=RECIPE.recompute,
            megatron_overrides={},
            mtp_layers=1,
        )
        chunks = build_model(spec, config, meta=True)
        return {name: (t, tensor_shard(chunks[0], name)) for name, t in megatron_tensors(chunks).items()}
    finally:
        destroy()


def on_all_ranks(name):
    """A parameter's name, or its names over all ranks that share out the experts."""
    match = re.fullmatch(r"(.*\.experts\..*weight)(\d+)", name)
    first = int(match[2]) % OWN_EXPERTS if match else 0
    return [f"{match[1]}{number}" for number in range(first, 256, OWN_EXPERTS)] if match else [name]


def test_glm_5_1_is_another_training_of_glm_5():
    assert (PRESETS / "glm-5.1.json").read_text() == (PRESETS / "glm-5.json").read_text()


def test_every_published_tensor_has_its_place_on_one_of_256_ranks(bridge, stages, published):
    names = [whole for stage in stages for name in stage for whole in on_all_ranks(name)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    assert twice == ["embedding.word_embeddings.weight"]  # the draft layer looks tokens up in a copy
    shapes, draft = published
    assert not list(bridge.coverage(shapes | draft, names).problems("bridge"))


@pytest.mark.parametrize("stage", range(STAGES))
def test_shapes_of_every_stage_map_both_ways(bridge, stages, published, stage):
    shapes, draft = published
    whole = shapes | draft
    for name, (tensor, shard) in stages[stage].items():
        entry = bridge.by_megatron[name]
        sources = [torch.empty(whole[hf], device="meta") for hf in entry.hf]
        part = entry.transform.read(sources, tuple(tensor.shape), shard)
        assert part.shape == tensor.shape, name
        written = entry.transform.write([part] * (shard.size if entry.transform.split else 1))
        assert [tuple(each.shape) for each in written] == [whole[hf] for hf in entry.hf]


def test_layers_are_where_the_recipe_puts_them(stages):
    layers = [
        {int(name.split(".")[2]) for name in stage if name.startswith("decoder.layers")} for stage in stages
    ]
    assert [len(each) for each in layers] == [14, 8, 8, 8, 8, 8, 8, 16]
    assert set.union(*layers) == set(range(78))


def test_full_layers_have_indexers_and_shared_ones_have_none(hf_config, stages):
    shared = hf_config.get("indexer_types", []).count("shared")
    indexers = {name.split(".indexer.")[0] for stage in stages for name in stage if ".indexer." in name}
    assert len(indexers) == 78 - shared + 1
    assert "mtp.layers.0.transformer_layer.self_attention" in indexers


def test_parameters_are_counted(name, spec, published):
    counted = [
        sum(torch.Size(shape).numel() for name, shape in part.items() if not name.endswith("correction_bias"))
        for part in published
    ]
    tables = 2 * 154880 * 6144
    assert spec.parameters == counted[0]
    assert spec.mtp_layers[0].parameters == counted[1] - tables
    assert round(counted[0] / 1e9, 1) == BILLIONS[name]
