"""`rlcore plan`, as a user runs it."""

import json
import subprocess
import sys

import pytest

from rlcore.cli.main import main
from rlcore.registry import Catalog
from rlcore.registry.resources import recipes

SHIPPED = [recipe.name for recipe in recipes(Catalog.installed())]
BIG = next(name for name in SHIPPED if name.endswith("9b"))


def plan(capsys, *arguments):
    code = main(["plan", *arguments])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_plans(capsys, name):
    _, out, _ = plan(capsys, name, "--json")
    record = json.loads(out)
    here_or_not = [p for p in record["problems"] if "on this machine" not in p["message"]]
    assert here_or_not == []


def test_the_published_recipe_shows_its_plugins_batches_and_layout(capsys):
    code, out, err = plan(capsys, BIG)
    assert (code, err) == (0, "")
    assert "32 prompts × 8 = 256 samples" in out
    assert "4 = tp 2 × pp 1 × cp 2 × dp 1" in out
    assert "of rlcore-rewards" in out
    assert "(rollout.engine): generation with SGLang is not built yet" in out
    assert out.endswith("no problem found\n")


def test_each_line_of_the_recipe_names_its_source(capsys):
    _, out, _ = plan(capsys, BIG, "--set", "optimizer.lr=2e-6")
    assert "lr: 2e-06 # --set optimizer.lr=2e-6\n" in out
    assert ".yaml:" in next(line for line in out.splitlines() if "weight_decay" in line)


def test_every_problem_is_printed_and_the_exit_code_is_1(capsys):
    code, out, err = plan(
        capsys, BIG, "--set", "parallel.tp=3", "--set", "rewards=[nope]", "--set", "rollout.topp=1"
    )
    assert code == 1
    assert "3 problems:" in out
    for fragment in ("unknown key 'topp'", "no reward 'nope'", "tp × pp × cp = 6 does not divide 4 GPUs"):
        assert fragment in err


def test_the_models_own_layout_rule_is_applied(capsys):
    code, _, err = plan(capsys, BIG, "--set", "parallel.tp=7", "--set", "cluster.gpus_per_node=14")
    assert code == 1
    assert "7 does not divide the 32 attention heads" in err


def test_json_holds_defaults_and_problems(capsys):
    code, out, _ = plan(capsys, BIG, "--json", "--set", "megatron.lr=1")
    record = json.loads(out)
    assert code == 1
    assert record["recipe"]["optimizer"]["eps"] == 1e-8
    assert record["problems"][0]["place"] == "--set megatron.lr=1 (megatron.lr)"
    assert record["layout"]["stage 0"] == "40 dense"


def test_a_misspelt_recipe_is_answered_with_a_shipped_one(capsys):
    code, _, err = plan(capsys, BIG[:-1])
    assert code == 1
    assert f"did you mean '{BIG}'?" in err


def test_without_a_recipe_the_shipped_ones_are_listed(capsys):
    code, _, err = plan(capsys)
    assert code == 1
    assert all(name in err for name in SHIPPED)


def test_planning_imports_no_torch():
    code = (
        "import sys; from rlcore.cli.main import main; code = main(['plan', sys.argv[1], '--json'])\n"
        "heavy = [m for m in ('torch', 'megatron', 'ray', 'transformers') if m in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy or code else 0)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, BIG], check=True, stdout=subprocess.DEVNULL)
