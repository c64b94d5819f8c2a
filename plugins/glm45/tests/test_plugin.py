import subprocess
import sys
from types import SimpleNamespace

import pytest

from rlcore.config.schema import Parallel
from rlcore.layout.rules import model_problems
from rlcore.registry import Catalog


@pytest.fixture
def spec(config):
    return Catalog.installed().load("model_spec", "glm4_moe").create(config)


def test_spec_and_bridge_are_found_by_model_type(spec):
    assert spec.model_type == "glm4_moe"
    bridge = Catalog.installed().load("weight_bridge", "glm4_moe").create(spec)
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in bridge.by_hf


def test_the_plugin_imports_no_torch(config):
    code = "import sys, rlcore_glm45.plugin as p; p.model_spec({!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code.format(config)], check=True)


def test_the_layout_rule_forbids_nothing_that_rlcore_allows(spec):
    rule = Catalog.installed().load("layout_validator", "glm4_moe").create(spec)
    assert not rule.validate(SimpleNamespace())


def test_ranks_share_experts_evenly_or_not_at_all(spec):
    (problem,) = model_problems(Parallel(ep=3), spec)
    assert (problem.place, problem.message) == ("parallel.ep", "3 does not divide the 8 experts")
    assert problem.remedy == "one of 1, 2, 4, 8"
