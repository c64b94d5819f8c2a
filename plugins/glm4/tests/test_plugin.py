import subprocess
import sys

import pytest

from rlcore.config.schema import Parallel
from rlcore.registry import Catalog


@pytest.fixture
def spec(config):
    return Catalog.installed().load("model_spec", "glm4").create(config)


def test_spec_and_bridge_are_found_by_model_type(spec):
    assert spec.model_type == "glm4"
    bridge = Catalog.installed().load("weight_bridge", "glm4").create(spec)
    assert "model.embed_tokens.weight" in bridge.by_hf


def test_the_plugin_imports_no_torch(config):
    code = "import sys, rlcore_glm4.plugin as p; p.model_spec({!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code.format(config)], check=True)


def test_the_layout_rule_forbids_nothing_that_rlcore_allows(spec):
    rule = Catalog.installed().load("layout_validator", "glm4").create(spec)
    assert not rule.validate(Parallel(tp=2, pp=2))
