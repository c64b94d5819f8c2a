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


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_tensor_parallel_sizes_that_divide_the_heads_are_legal(spec, tp):
    validator = Catalog.installed().load("layout_validator", "glm4").create(spec)
    assert not validator.validate(Parallel(tp=tp))


def test_other_tensor_parallel_sizes_are_refused_with_those_that_work(spec):
    validator = Catalog.installed().load("layout_validator", "glm4").create(spec)
    problems = validator.validate(Parallel(tp=3))
    assert "3 does not divide the 4 attention heads" in str(problems[0])
    assert problems[0].remedy == "parallel.tp: one of 1, 2, 4"
