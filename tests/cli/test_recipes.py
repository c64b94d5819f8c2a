"""`rlcore recipes`: the recipes that plugins ship, by the names that other commands take."""

import json

import pytest

from rlcore.cli.main import main


@pytest.fixture
def shipped(distribution, site):
    distribution("test-one", "[rlcore.resources]\nfamily = family_recipes")
    folder = site / "family_recipes" / "recipes"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text("# Learns to add in minutes.\nname: tiny\n")
    return folder / "tiny.yaml"


def test_names_and_summaries_are_shown(shipped, capsys):
    assert main(["recipes"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("family/tiny "))
    assert line.split(maxsplit=1)[1] == "Learns to add in minutes."


def test_records_hold_the_path(shipped, capsys):
    assert main(["recipes", "--json"]) == 0
    records = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert records["family/tiny"]["path"] == str(shipped)
