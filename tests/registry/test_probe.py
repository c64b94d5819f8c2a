"""Probing: a plugin is tried in a process of its own, which may hang, die or talk."""

import pytest

from rlcore.registry import Catalog
from rlcore.registry.probe import probe

SOUND = """
from pydantic import BaseModel, ConfigDict
from rlcore.plugin import reward

class Options(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)
    worth: float = 1.0
    \"\"\"What a response is worth.\"\"\"

@reward
def steps(sample, options: Options): return options.worth
"""


@pytest.fixture
def outcome(distribution):
    """Probe a module of one reward."""

    def make(source, timeout=30.0):
        distribution("test-one", "[rlcore.rewards]\nsteps = probe_module:steps", probe_module=source)
        return probe(Catalog.installed().find("reward", "steps"), timeout)

    return make


def test_a_sound_plugin_is_ok_and_its_options_are_known(outcome):
    found = outcome("print('noise on stdout')\n" + SOUND)
    assert found.candidate.state == "ok"
    assert found.options == [
        {"name": "worth", "type": "float", "default": "1.0", "help": "What a response is worth."}
    ]


def test_a_plugin_that_raises_is_broken_with_its_cause(outcome):
    found = outcome("raise OSError('no disk')").candidate
    assert (found.state, found.reason.partition(" (")[0]) == ("broken", "OSError: no disk")


def test_a_plugin_that_hangs_is_killed_and_said_so(outcome):
    found = outcome("import time\ntime.sleep(600)", timeout=3.0).candidate
    assert (found.state, found.reason) == ("broken", "its import took longer than 3 s")


def test_a_plugin_that_ends_its_process_is_broken(outcome):
    found = outcome("import os\nos._exit(7)").candidate
    assert (found.state, found.reason) == ("broken", "its import ended the process with exit code 7")


def test_a_plugin_that_cannot_be_loaded_is_not_tried(distribution):
    distribution("test-one", "[rlcore.rewards]\nsteps = probe_module", requires=["rlcore<0.0.1"])
    candidate = next(one for one in Catalog.installed().candidates if one.dist == "test-one")
    assert probe(candidate, 1.0).candidate == candidate
