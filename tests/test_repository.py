"""Rules about the code itself that no linter knows."""

import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "rlcore").rglob("*.py"))
COMMANDS = ["list-plugins", "recipes", "plan", "train", "sft", "eval"]
COMMANDS += ["verify", "convert", "reward", "report", "doctor"]


def test_the_core_names_no_model():
    naming = [path for path in CORE if re.search("glm", path.read_text(), re.IGNORECASE)]
    assert naming == []


def test_the_core_names_no_reward():
    names = "|".join(re.escape(point.name) for point in entry_points(group="rlcore.rewards"))
    quoted = re.compile(rf"""["']({names})["']""")
    assert [path for path in CORE if quoted.search(path.read_text())] == []


def test_every_module_says_what_it_is():
    silent = [path for path in CORE if path.stat().st_size and not path.read_text().startswith('"""')]
    assert silent == []


def test_no_file_is_longer_than_500_lines():
    assert [path for path in CORE if len(path.read_text().splitlines()) > 500] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_and_imports_nothing_heavy(command):
    code = (
        "import sys\nfrom rlcore.cli.main import main\n"
        f"try: main([{command!r}, '--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'pydantic', 'pluggy', 'transformers', 'rich') if m in sys.modules])"
    )
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "usage: rlcore" in out
    assert out.strip().endswith("[]")
