"""`rlcore list-plugins`: what is shown, when it exits with 1, and that nothing installed makes it fail."""

import json
import subprocess
import sys

import pytest

from rlcore.cli.main import main

SOUND = """
from pydantic import BaseModel, Field
from rlcore.plugin import reward

class Options(BaseModel):
    worth: float = Field(1.0, description="What a response is worth.")
    judge: str

@reward
def steps(sample, options: Options): return options.worth
"""


@pytest.fixture
def plugins(distribution):
    """A sound plugin, one that breaks on import, one for another rlcore."""
    distribution("test-sound", "[rlcore.rewards]\nsteps = sound_probe:steps", sound_probe=SOUND)
    distribution("test-broken", "[rlcore.rewards]\nbad = broken_probe", broken_probe="raise OSError('no disk')")
    distribution("test-old", "[rlcore.losses]\nold = gone", requires=["rlcore<0.0.1"])


@pytest.fixture
def listed(plugins, capsys):
    """Run the command and return (exit code, records by name)."""

    def run(*arguments):
        code = main(["list-plugins", "--json", *arguments])
        return code, {one["name"]: one for one in json.loads(capsys.readouterr().out)}

    return run


def test_it_prints_a_table_and_the_reason_of_what_cannot_be_used(plugins, capsys):
    assert main(["list-plugins"]) == 0
    out = capsys.readouterr().out
    row = next(line.split() for line in out.splitlines() if " test-sound " in line)
    assert row == ["reward", "steps", "test-sound", "1.0", "found"]
    assert "incompatible: it needs rlcore<0.0.1, this is rlcore " in out
    assert "try: pip install 'rlcore<0.0.1'" in out


def test_records_hold_what_a_program_needs(listed):
    _, records = listed()
    record = records["steps"]
    assert record == {
        "kind": "reward",
        "name": "steps",
        "dist": "test-sound",
        "version": "1.0",
        "value": "sound_probe:steps",
        "state": "found",
        "reason": "",
        "remedy": "",
    }


def test_listing_imports_no_plugin_and_nothing_heavy(plugins):
    code = (
        "import sys; from rlcore.cli.main import main; main(['list-plugins']); "
        "heavy = {'sound_probe', 'broken_probe', 'pluggy', 'pydantic', 'torch', 'packaging', 'rich'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).endswith("[]\n")


def test_a_kind_can_be_chosen(listed):
    _, records = listed("--kind", "policy_loss")
    assert {one["kind"] for one in records.values()} == {"policy_loss"}


def test_check_tells_sound_from_broken(listed):
    code, records = listed("--check", "--kind", "reward")
    assert (code, records["steps"]["state"]) == (0, "ok")
    assert (records["bad"]["state"], records["bad"]["reason"].partition(" (")[0]) == (
        "broken",
        "OSError: no disk",
    )


def test_strict_exits_with_1_on_any_problem(listed):
    assert listed("--strict")[0] == 1
    assert listed("--strict", "--no-plugin", "test-old:old")[0] == 0


def test_a_denied_plugin_is_shown_as_disabled(listed):
    assert listed("--no-plugin", "reward:steps")[1]["steps"]["state"] == "disabled"


def test_a_required_plugin_must_be_there(plugins, capsys):
    assert main(["list-plugins", "--require", "steps"]) == 0
    assert main(["list-plugins", "--require", "stepz"]) == 1
    assert "required plugin 'stepz' is not installed" in capsys.readouterr().err


def test_explain_shows_entry_point_and_options(plugins, capsys):
    assert main(["list-plugins", "--explain", "test-sound:steps"]) == 0
    out = capsys.readouterr().out
    assert "rlcore.rewards: steps = sound_probe:steps" in out
    assert "float, default 1.0. What a response is worth." in out
    assert "str, required" in out


def test_explain_of_a_broken_plugin_says_why(plugins, capsys):
    assert main(["list-plugins", "--explain", "bad"]) == 1
    assert "broken: OSError: no disk" in capsys.readouterr().out


def test_explain_of_a_name_that_nobody_has(plugins, capsys):
    assert main(["list-plugins", "--explain", "nobody"]) == 1
    assert "nobody: no plugin of this name is installed" in capsys.readouterr().err
