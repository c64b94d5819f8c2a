"""What a person gets who installs a wheel into an empty environment."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from rlcore_glm4.demo import DEMO

ROOT = Path(__file__).parents[1]
PLUGINS = ("glm4", "glm45", "glm47-flash", "glm52-dsa", "rewards")


# Beside the sources of a wheel, or made of them.
OTHERS = (".*", "build", "dist", "runs", "*.egg-info", "__pycache__", "docs", "plugins", "tests")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A wheel of every distribution, by name.

    Of copies: a build takes what it finds in the source's build/, which another may be writing just then.
    """
    out = tmp_path_factory.mktemp("wheels")
    for folder in (ROOT, *(ROOT / "plugins" / name.replace("-", "_") for name in PLUGINS)):
        source = tmp_path_factory.mktemp("source")
        shutil.copytree(folder, source, ignore=shutil.ignore_patterns(*OTHERS), dirs_exist_ok=True)
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source]
        subprocess.run(command, check=True, capture_output=True)
    return {path.name.split("-")[0].replace("_", "-"): path for path in out.glob("*.whl")}


@pytest.fixture(scope="module")
def empty_environment(wheels, tmp_path_factory):
    """A new virtual environment into which only `rlcore` was installed; returns its bin folder."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin/pip", "install", "--quiet", wheels["rlcore"]], check=True)
    return folder / "bin"


def run(bin_folder, *args, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [bin_folder / "rlcore", *args],
        capture_output=True,
        text=True,
        env={**clean, **environment},
        check=False,
    )


def test_the_base_install_is_light(empty_environment):
    code = "from importlib.util import find_spec; print([*map(find_spec, ('torch', 'numpy', 'transformers'))])"
    found = subprocess.check_output([empty_environment / "python", "-c", code], text=True)
    assert found.strip() == "[None, None, None]"


@pytest.mark.parametrize(
    "args", [("list-plugins",), ("list-plugins", "--check"), ("recipes",), ("plan", "--help"), ("--help",)]
)
def test_the_base_install_lists_and_teaches(empty_environment, args):
    result = run(empty_environment, *args)
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.fixture
def installed(empty_environment, wheels, tmp_path):
    """Install a plugin's wheel alone into a folder for PYTHONPATH."""

    def install(name):
        pip = [empty_environment / "pip", "install", "--quiet", "--no-deps", "--target", tmp_path]
        subprocess.run([*pip, wheels[f"rlcore-{name}"]], check=True, capture_output=True)
        return str(tmp_path)

    return install


def test_a_missing_extra_is_named_with_the_command_that_adds_it(empty_environment, installed, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DEMO.config))
    result = run(empty_environment, "verify", str(tmp_path), PYTHONPATH=installed("glm4"))
    assert result.returncode == 1
    assert "pip install 'rlcore[train]'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_wheel_installs_without_the_others(empty_environment, installed, name):
    listed = json.loads(run(empty_environment, "list-plugins", "--json", PYTHONPATH=installed(name)).stdout)
    assert {plugin["dist"] for plugin in listed} == {"rlcore", f"rlcore-{name}"}


def test_wheels_hold_the_data_that_plugins_ship(wheels):
    names = {name for path in wheels.values() for name in zipfile.ZipFile(path).namelist()}
    assert "rlcore_glm4/recipes/tiny.yaml" in names
    assert "rlcore_glm4/recipes/glm-z1-9b.yaml" in names
    assert any(name.startswith("rlcore_glm4/presets/") for name in names)
    assert "rlcore_glm45/recipes/glm4.7-355b-fp8.yaml" in names
    assert "rlcore_glm45/templates/chat.jinja" in names
    assert "rlcore_glm52_dsa/presets/glm-5.2.json" in names
    assert "rlcore_glm52_dsa/kernels/__init__.py" in names
    assert "rlcore/telemetry/templates/report.html.jinja" in names
