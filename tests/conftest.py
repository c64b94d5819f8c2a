"""Distributions made for a test: fake ones of metadata and modules, a real one of pip's; and a full disk."""

import importlib
import os
import resource
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from rlcore.testing.engine_contract import Subject

# Their servers need an environment of their own; `make test-sglang` makes it, and fails where it is missing.
collect_ignore = [] if (Path(__file__).parents[1] / ".venv-sglang" / ".installed").exists() else ["sglang"]

# How long an example takes says something about the machine, nothing about the code.
settings.register_profile("rlcore", deadline=None)
settings.load_profile("rlcore")

# A process asks Ray once whether clusters have a token; tests meet several, which others start without one,
# as `rlcore cluster up` does.
os.environ["RAY_AUTH_MODE"] = "disabled"

OUTSIDE_PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "outside-reward"
version = "0.3"
dependencies = ["rlcore>=0.1,<1"]

[project.entry-points."rlcore.rewards"]
vowels = "outside_reward:vowels"

[tool.setuptools]
py-modules = ["outside_reward"]
"""

OUTSIDE_MODULE = '''\
"""Rewards responses for a share of vowels."""

from pydantic import BaseModel, Field

from rlcore.plugin import RewardResult, Sample, reward


class VowelOptions(BaseModel):
    target: float = Field(0.5, ge=0, le=1)
    letters: str = "aeiou"


@reward
def vowels(sample: Sample, options: VowelOptions) -> RewardResult:
    text = sample.response.lower()
    share = sum(letter in options.letters for letter in text) / max(len(text), 1)
    return RewardResult(1 - abs(share - options.target), {"share": share})
'''


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty folder first on sys.path, here and in child processes; its modules are forgotten after."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def distribution(site):
    """Make a distribution of metadata alone, and modules for it: `distribution(name, entry_points, ...)`."""

    def make(name, entry_points, version="1.0", requires=(), folder=site, **modules):
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        (info / "entry_points.txt").write_text(textwrap.dedent(entry_points))
        for module, source in modules.items():
            (folder / f"{module}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        return info

    return make


@pytest.fixture(scope="session")
def outside_plugin(tmp_path_factory) -> Path:
    """A reward plugin written outside the repository and installed by pip; returns the folder it is in.

    It is `rlcore.rewards: vowels` with the options `target` and `letters`.
    """
    project = tmp_path_factory.mktemp("outside-reward")
    (project / "pyproject.toml").write_text(OUTSIDE_PROJECT)
    (project / "outside_reward.py").write_text(OUTSIDE_MODULE)
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", target, project], check=True)
    return target


@pytest.fixture
def ends():
    """Whether the process of a number ends within a minute; one that is left to its parent to fetch has."""

    def runs(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    def wait(pid):
        until = time.monotonic() + 60
        while runs(pid) and time.monotonic() < until:
            time.sleep(0.01)
        return not runs(pid)

    return wait


@pytest.fixture
def full_disk():
    """Within `full_disk(size)`, files end after `size` bytes: what is written past them fails."""

    @contextmanager
    def limit(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


SERVED = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "attention_bias": True,
}
EXPERTS = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "use_qk_norm": True,
}


@pytest.fixture(scope="session", params=["glm4", "glm4_moe"])
def subject(request, tmp_path_factory) -> Subject:
    """A tiny model, dense or with experts, that engines are held to their contract with."""
    experts = EXPERTS if request.param.endswith("moe") else {}
    return Subject.make(
        tmp_path_factory.mktemp(request.param), {"model_type": request.param, **SERVED, **experts}
    )


@pytest.fixture
def two_nodes():
    """A Ray cluster of two nodes on this machine, each with one CPU."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()
