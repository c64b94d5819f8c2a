"""A recipe trains with SGLang servers as it does with the local engine."""

import pytest
from rlcore_glm4.demo import DEMO

from rlcore.cli.main import main
from rlcore.telemetry.metrics import read_metrics

RECIPE = """\
base: glm4/tiny
name: served
model: {{checkpoint: {world}/model}}
data: {{path: {world}/train.jsonl}}
rollout:
  engine: sglang
  num_gpus: 2  # servers, where the cluster has no GPU
  prompts_per_step: 8
  samples_per_prompt: 4
  sglang: {{python: {python}}}
train: {{steps: 2}}
eval: {{every: null, datasets: []}}
checkpoints: {{hf: false}}
"""


@pytest.fixture(scope="session")
def recipe(sglang_python, tmp_path_factory):
    world = tmp_path_factory.mktemp("world")
    DEMO.write(world)
    file = world / "served.yaml"
    file.write_text(RECIPE.format(world=world, python=sglang_python))
    return file


def train(recipe, run, *flags):
    return main(["train", str(recipe), "--run-dir", str(run), "--quiet", *flags])


def test_two_servers_behind_a_router_agree_with_the_trainer_on_every_step(recipe, tmp_path):
    run = tmp_path / "run"
    assert train(recipe, run) == 0
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert max(row["logprob_gap/max"] for row in rows) < 1e-5
    logs = [(run / "logs" / f"sglang-{i}.log").read_text() for i in (0, 1)]
    assert all("/generate" in log for log in logs)
    assert (run / "logs/router.log").is_file()
    assert not (tmp_path / ".run.starting").exists()


def test_an_argument_that_this_release_has_not_stops_before_anything_starts(recipe, tmp_path, capsys):
    assert train(recipe, tmp_path / "run", "--set", "rollout.sglang.args.page_sise=64") == 1
    assert "SGLang 0.5.23 has no argument 'page_sise'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_server_that_cannot_start_is_explained_with_its_last_words(recipe, tmp_path, capsys):
    assert train(recipe, tmp_path / "run", "--set", "rollout.sglang.args.context_length=100000") == 1
    message = capsys.readouterr().err
    assert "ended with exit status" in message
    assert "context" in message
    assert not (tmp_path / "run").exists()
