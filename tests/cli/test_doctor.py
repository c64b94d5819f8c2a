"""`rlcore doctor`: the machine in words, and what to do about what is missing."""

import json

from rlcore.cli import doctor
from rlcore.cli.main import main


def findings(capsys):
    assert main(["doctor", "--json"]) == 0
    return {one["what"]: one for one in json.loads(capsys.readouterr().out)}


def test_it_knows_the_machine(capsys):
    assert {"rlcore", "processor", "memory", "GPUs", "training", "sglang", "plugins"} <= set(findings(capsys))


def test_proxies_that_would_come_between_nodes_are_named(capsys, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    proxies = findings(capsys)["proxies"]
    assert proxies["good"] is False
    assert "HTTPS_PROXY" in proxies["words"]


def test_a_missing_extra_is_named_with_the_command_that_adds_it(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda name: None)
    training = findings(capsys)["training"]
    assert training["good"] is False
    assert "torch" in training["words"]
    assert training["remedy"] == "pip install 'rlcore[train]'"


def test_plugins_in_trouble_are_told(distribution, capsys):
    distribution("test-old", "[rlcore.losses]\nold = gone", requires=["rlcore<0.0.1"])
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "policy_loss 'old' of test-old 1.0 (gone) is incompatible" in out
    assert "try: pip install 'rlcore<0.0.1'" in out
