"""Stages of GLM-5.2, as `rlcore plan` judges its recipe with other splits."""

import json
import shlex

import pytest

from rlcore.cli.main import main

RECIPE = "glm52_dsa/glm5.2-744b"


@pytest.fixture
def plan(capsys):
    """Gives what `rlcore plan` prints of the recipe with other sizes; data parallel ranks make up the rest."""

    def make(*arguments, **parallel):
        sizes = {"tp": 1, "cp": 1, "ep": 1, "first_stage_layers": None, "last_stage_layers": None, **parallel}
        settings = [f"parallel.{name}={'null' if size is None else size}" for name, size in sizes.items()]
        code = main(
            ["plan", RECIPE, *(word for setting in settings for word in ("--set", setting)), *arguments]
        )
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return make


def test_the_published_split_works(plan):
    code, out, _ = plan(pp=8, first_stage_layers=14, last_stage_layers=16)
    assert code == 0
    assert "stage 1  layers 14-21: 2 moe + 6 moe shared, " in out
    assert "stage 7  layers 62-77: 4 moe + 12 moe shared + output layer, " in out


@pytest.mark.parametrize("pp", range(2, 17))
def test_every_number_of_stages_is_judged_by_the_layers_that_choose_keys(plan, pp):
    """Such are layers 0, 1, 2, 6, 10 and so on: stages of 4 layers work after 2, and not after 3."""
    for first, works in ((2, True), (3, False)):
        last = 78 - first - 4 * (pp - 2)
        _, out, err = plan(
            "--set", "cluster.gpus_per_node=0", pp=pp, first_stage_layers=first, last_stage_layers=last
        )
        assert ("\n  stage 1  " in out) == works
        assert ("stage 1 starts at layer 3, which needs layer 2" not in err) == works


@pytest.mark.parametrize(
    ("parallel", "stage", "layer", "source"),
    [
        ({"pp": 2}, "stage 1", 39, 38),
        ({"pp": 8, "last_stage_layers": 8}, "stage 2", 20, 18),
        ({"pp": 16, "first_stage_layers": 4, "last_stage_layers": 4}, "stage 1", 4, 2),
        ({"pp": 8, "vpp": 2, "first_stage_layers": 14, "last_stage_layers": 16}, "chunk 0 of stage 1", 7, 6),
        ({"pp": 2, "pipeline_layout": "Et*40|t*38L"}, "stage 1", 40, 38),
    ],
)
def test_a_stage_that_would_lack_its_keys_is_named_with_layouts_that_work(plan, parallel, stage, layer, source):
    code, out, err = plan(**parallel)
    assert code == 1
    assert f"{stage} starts at layer {layer}, which needs layer {source} on the same stage" in err
    assert "try: " in err
    nearest = out[out.index("nearest layouts that work") :].splitlines()[1]
    accepted, _, _ = plan(*shlex.split(nearest[nearest.index("--set") :]), **parallel)
    assert accepted == 0


def test_the_best_balanced_stages_are_shown_and_can_be_taken(plan):
    _, out, _ = plan(pp=8)
    cost, _, settings = (
        out[out.index("better balanced stages") :].splitlines()[1].partition(" of the mean cost  ")
    )
    code, out, _ = plan(*shlex.split(settings), pp=8)
    assert code == 0
    assert f"{cost.strip()} of the mean cost" in out[out.index("stage 0") :]


def test_json_has_the_same_as_data(plan):
    _, out, _ = plan("--json", pp=8)
    record = json.loads(out)
    assert record["nearest"][0]["pp"] == 8
    assert [one["dearest"] for one in record["balanced"]] == sorted(
        one["dearest"] for one in record["balanced"]
    )
