import subprocess
import sys
from types import SimpleNamespace

import pytest

from rlcore.config.schema import Parallel
from rlcore.layout.rules import model_problems
from rlcore.registry import Catalog


@pytest.fixture
def spec(config):
    return Catalog.installed().load("model_spec", "glm_moe_dsa").create(config)


def test_spec_and_bridge_are_found_by_model_type(spec):
    assert spec.model_type == "glm_moe_dsa"
    bridge = Catalog.installed().load("weight_bridge", "glm_moe_dsa").create(spec)
    assert "model.layers.0.self_attn.indexer.wq_b.weight" in bridge.by_hf


def test_the_plugin_imports_no_torch(config):
    code = "import sys, rlcore_glm52_dsa.plugin as p; p.model_spec({!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code.format(config)], check=True)


def test_the_layout_rule_forbids_nothing_that_rlcore_allows(spec):
    rule = Catalog.installed().load("layout_validator", "glm_moe_dsa").create(spec)
    assert not rule.validate(SimpleNamespace())


@pytest.mark.parametrize(("sizes", "key"), [({"ep": 3}, "parallel.ep"), ({"tp": 3}, "parallel.tp")])
def test_ranks_share_experts_and_heads_evenly_or_not_at_all(spec, sizes, key):
    assert {problem.place for problem in model_problems(Parallel(**sizes), spec)} == {key}
