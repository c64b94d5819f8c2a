import subprocess
import sys
from types import SimpleNamespace

import pytest

from rlcore.config.schema import Parallel
from rlcore.layout.rules import model_problems
from rlcore.registry import Catalog


@pytest.fixture
def spec(config):
    return Catalog.installed().load("model_spec", "glm4_moe_lite").create(config)


def test_spec_and_bridge_are_found_by_model_type(spec):
    assert spec.model_type == "glm4_moe_lite"
    bridge = Catalog.installed().load("weight_bridge", "glm4_moe_lite").create(spec)
    assert "model.layers.1.self_attn.kv_a_proj_with_mqa.weight" in bridge.by_hf


def test_the_plugin_imports_no_torch(config):
    code = "import sys, rlcore_glm47_flash.plugin as p; p.model_spec({!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code.format(config)], check=True)


def test_the_layout_rule_forbids_nothing_that_rlcore_allows(spec):
    rule = Catalog.installed().load("layout_validator", "glm4_moe_lite").create(spec)
    assert not rule.validate(SimpleNamespace())


@pytest.mark.parametrize(("sizes", "key"), [({"ep": 3}, "parallel.ep"), ({"tp": 3}, "parallel.tp")])
def test_ranks_share_experts_and_heads_evenly_or_not_at_all(spec, sizes, key):
    assert {problem.place for problem in model_problems(Parallel(**sizes), spec)} == {key}
