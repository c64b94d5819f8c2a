"""A reward plugin of 20 lines in a folder of its own, installed by pip, is a plugin like any other."""

import asyncio
import json
import os
import subprocess
import sys

import pytest

from rlcore.data.sample import Sample
from rlcore.errors import RlcoreError
from rlcore.registry import Catalog


@pytest.fixture
def catalog(outside_plugin, monkeypatch):
    monkeypatch.syspath_prepend(str(outside_plugin))
    monkeypatch.delitem(sys.modules, "outside_reward", raising=False)
    return Catalog.installed()


def test_it_is_no_longer_than_twenty_lines(outside_plugin):
    assert len((outside_plugin / "outside_reward.py").read_text().splitlines()) <= 20


def test_it_is_listed_without_being_imported(catalog):
    found = catalog.find("reward", "vowels")
    assert (found.dist, found.version, found.state) == ("outside-reward", "0.3", "found")
    assert "outside_reward" not in sys.modules


def test_the_command_line_lists_and_checks_it(outside_plugin):
    command = [sys.executable, "-m", "rlcore.cli.main", "list-plugins", "--check", "--json", "--kind", "reward"]
    listed = subprocess.check_output(command, env={**os.environ, "PYTHONPATH": str(outside_plugin)})
    states = {one["name"]: one["state"] for one in json.loads(listed)}
    assert states["vowels"] == "ok"


def test_it_scores_samples_with_the_options_of_a_recipe(catalog):
    plugin = catalog.load("reward", "vowels")
    reward = plugin.create(plugin.parse_options({"target": 1.0}, "rewards[0].options"))
    samples = [Sample(prompt="", response=text) for text in ("aeio", "xyz", "ax")]
    results = asyncio.run(reward.score(samples))
    assert [one.value for one in results] == [1.0, 0.0, 0.5]
    assert [one.parts for one in results] == [{"share": 1.0}, {"share": 0.0}, {"share": 0.5}]


def test_its_options_are_checked_against_its_own_model(catalog):
    with pytest.raises(RlcoreError) as error:
        catalog.load("reward", "vowels").parse_options({"target": 2, "leters": "y"}, "rewards[0].options")
    places = {problem.place: str(problem) for problem in error.value.problems}
    assert "less than or equal to 1" in places["rewards[0].options.target"]
    assert "did you mean letters?" in places["rewards[0].options.leters"]
