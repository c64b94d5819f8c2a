"""`rlcore plan`, as a user runs it."""

import json
import shlex
import subprocess
import sys

import pytest

from rlcore.cli.main import main
from rlcore.registry import Catalog
from rlcore.registry.resources import recipes

SHIPPED = [recipe.name for recipe in recipes(Catalog.installed().resources())]
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


def test_a_checkpoint_of_a_hub_is_fetched_to_a_folder_that_the_recipe_then_names(capsys):
    _, out, _ = plan(capsys, BIG)
    assert "--local-dir FOLDER, then --set model.checkpoint=FOLDER" in out


def test_a_folder_that_is_not_there_is_said_once_and_is_no_model_of_a_hub(capsys):
    code, out, err = plan(capsys, BIG, "--set", "model.checkpoint=no/such/folder")
    assert code == 1
    assert "hf download" not in out + err
    assert (out + err).count("on this machine") == 1


def test_an_unknown_layout_validator_is_said_once(capsys):
    code, _, err = plan(capsys, BIG, "--set", "layout_validators=[nope]")
    assert code == 1
    assert err.count("error:") == 1


def test_the_published_recipe_shows_its_plugins_batches_and_layout(capsys):
    code, out, err = plan(capsys, BIG)
    assert (code, err) == (0, "")
    assert "32 prompts × 8 = 256 samples" in out
    assert "4 = tp 2 × pp 1 × cp 2 × dp 1" in out
    assert "of rlcore-rewards" in out
    assert "not built yet" not in out
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
    assert "6 problems:" in out
    for fragment in (
        "unknown key 'topp'",
        "no reward 'nope'",
        "tp × pp × cp = 6 does not divide 4 GPUs",
        "3 does not divide the 32",
    ):
        assert fragment in err


def test_a_layout_that_cannot_be_comes_with_the_nearest_that_can(capsys):
    code, out, err = plan(capsys, BIG, "--set", "parallel.tp=3", "--set", "cluster.gpus_per_node=8")
    assert code == 1
    assert "3 does not divide the 32 attention heads" in err
    nearest = out[out.index("nearest layouts that work") :].splitlines()[1:4]
    assert nearest[0].strip() == "tp 4 × pp 1 × cp 2 × ep 1  --set parallel.tp=4"
    suggested = [part for part in nearest[1].split() if "=" in part]
    changed = [argument for setting in suggested for argument in ("--set", setting)]
    assert plan(capsys, BIG, "--set", "cluster.gpus_per_node=8", *changed)[0] == 0


def test_groups_of_512_ranks_fit_a_line_each(capsys):
    sizes = ("cluster.nodes=64", "cluster.gpus_per_node=8", "parallel.pp=4", "parallel.vpp=2")
    _, out, _ = plan(capsys, BIG, *(argument for size in sizes for argument in ("--set", size)))
    assert "  tp  256 of 2 ranks: 0-1, 2-3, 4-5 … 510-511\n" in out
    assert "  dp  16 of 32 ranks: 0+4+…+124" in out
    assert "  stage 3  layers 15-19 | 35-39: 10 dense + output layer, 1.18 of the mean cost\n" in out


def test_stages_in_much_better_balance_are_shown_and_can_be_taken(capsys):
    uneven = ("--set", "cluster.gpus_per_node=8", "--set", "parallel.pp=4", "--set", "parallel.cp=1")
    _, out, _ = plan(capsys, BIG, *uneven)
    assert "stage 3  layers 30-39: 10 dense + output layer, 1.18 of the mean cost\n" in out
    cost, _, setting = (
        out[out.index("better balanced stages") :].splitlines()[1].partition(" of the mean cost  ")
    )
    code, out, _ = plan(capsys, BIG, *uneven, *shlex.split(setting))
    assert code == 0
    assert f"{cost.strip()} of the mean cost" in out[out.index("stage 0") :]
    assert "better balanced stages" not in out


def test_json_holds_defaults_and_problems(capsys):
    code, out, _ = plan(capsys, BIG, "--json", "--set", "megatron.lr=1")
    record = json.loads(out)
    assert code == 1
    assert record["recipe"]["optimizer"]["eps"] == 1e-8
    assert record["problems"][0]["place"] == "--set megatron.lr=1 (megatron.lr)"
    assert record["layout"]["stage 0"] == "layers 0-39: embedding + 40 dense + output layer"
    assert record["groups"]["cp"] == [[0, 2], [1, 3]]


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
