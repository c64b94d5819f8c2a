"""A recipe trains with SGLang servers as it does with the local engine."""

from rlcore_glm45.demo import DEMO as EXPERTS

from rlcore.cli.main import main
from rlcore.telemetry.metrics import read_metrics


def train(recipe, run, *flags):
    return main(["train", str(recipe), "--run-dir", str(run), "--quiet", *flags])


def test_an_argument_that_this_release_has_not_stops_before_anything_starts(recipe, tmp_path, capsys):
    assert train(recipe, tmp_path / "run", "--set", "rollout.sglang.args.page_sise=64") == 1
    assert "SGLang 0.5.23 has no argument 'page_sise'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_server_that_cannot_start_is_explained_with_its_last_words(recipe, tmp_path, capsys):
    settings = ("rollout.num_gpus=1", "rollout.sglang.args.context_length=100000")
    assert train(recipe, tmp_path / "run", *(word for one in settings for word in ("--set", one))) == 1
    message = capsys.readouterr().err
    assert "ended with exit status" in message
    assert "context" in message
    assert not (tmp_path / "run").exists()


def test_experts_whose_trainer_and_server_share_memory_agree_on_every_step(write_recipe, check_run, tmp_path):
    run = tmp_path / "run"
    sets = ["cluster.colocate=true", "rollout.num_gpus=1", "sync.verify=always", "train.steps=3"]
    assert train(write_recipe("glm45", EXPERTS), run, *(f"--set={one}" for one in sets)) == 0
    check_run(run, steps=3)
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["memory/offloaded_gb"] > 0 and row["sync/probe_gap"] < 1e-5 for row in rows] == [True] * 3
    assert "/update_weights_from_tensor" in (run / "logs/sglang-0.log").read_text()
