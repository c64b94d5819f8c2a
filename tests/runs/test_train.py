import json

import pytest
from safetensors.torch import load_file

from rlcore.telemetry.metrics import read_metrics, values


def weights(run):
    return load_file(run / "hf/model.safetensors")


def test_a_run_leaves_all_that_is_promised(world):
    assert world.train("run") == 0
    run = world.folder / "run"
    promised = ["config.resolved.yaml", "plugins.lock.json", "metrics.jsonl", "events.jsonl", "report.html"]
    assert [name for name in promised if not (run / name).is_file()] == []
    assert (run / "rollouts/step-000003.jsonl").is_file()
    assert (run / "checkpoints/step-000003/state.json").is_file()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["model"] == "glm4"
    assert summary["max_logprob_gap"] <= 1e-5
    rates = values(read_metrics(run / "metrics.jsonl"), "perf/tflops_per_gpu")
    assert len(rates) == 3
    assert min(rates) > 0


def test_engine_and_trainer_agree_on_log_probs_at_every_step(world):
    world.train("run")
    gaps = [row["logprob_gap/max"] for row in read_metrics(world.folder / "run/metrics.jsonl") if "loss" in row]
    assert len(gaps) == 3
    assert max(gaps) <= 1e-5


def test_weights_move(world, materials):
    world.train("run")
    before, after = load_file(materials / "model/model.safetensors"), weights(world.folder / "run")
    assert before.keys() == after.keys()
    assert not all(before[name].equal(after[name]) for name in before)


def test_the_same_seed_gives_the_same_metrics(world):
    world.train("first")
    world.train("second")
    assert world.rows("first") == world.rows("second")


def test_another_seed_gives_other_metrics(world):
    world.train("first")
    world.train("second", "seed=7")
    assert world.rows("first") != world.rows("second")


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(world):
    world.train("whole", "train.steps=4")
    world.train("parts", "train.steps=2")
    assert world.train("parts", "train.steps=4", flags=["--resume"]) == 0
    assert world.rows("parts") == world.rows("whole")
    whole, parts = weights(world.folder / "whole"), weights(world.folder / "parts")
    assert all(whole[name].equal(parts[name]) for name in whole)


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.kl.loss_coefficient=0.1", "algorithm.entropy_coefficient=0.01"],
        ["algorithm.kl.reward_coefficient=0.1", "advantage=reinforce", "algorithm.normalize_advantages=true"],
        ["train.updates_per_rollout=2", "loss=gspo", "advantage=rloo", "algorithm.reduction=token"],
        ["filters=[nonzero_std]", "rollout.over_sampling_prompts=6", "rollout.partial=true"],
        ["loss={use: cispo}", "algorithm.importance_sampling.enabled=true", "train.max_tokens_per_gpu=64"],
        ["rollout.temperature=0.7", "rollout.top_p=0.9", "model.dtype=bfloat16"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_knob_of_the_algorithm_runs(world, overrides):
    assert world.train_only("run", "train.steps=2", *overrides) == 0
    rows = read_metrics(world.folder / "run/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["grad_norm"] > 0 for row in rows)


def test_kl_to_the_reference_starts_at_zero_and_grows(world):
    world.train_only("run", "algorithm.kl.loss_coefficient=0.1")
    kl = [row["kl"] for row in read_metrics(world.folder / "run/metrics.jsonl")]
    assert kl[0] == pytest.approx(0, abs=1e-9)
    assert kl[-1] > 0


def test_a_dry_run_writes_nothing(world):
    assert world.train("run", flags=["--dry-run"]) == 0
    assert not (world.folder / "run").exists()


def test_a_taken_folder_is_refused_and_left_as_it_is(world, capsys):
    world.train("run", "train.steps=1")
    before = sorted(path.stat().st_mtime_ns for path in (world.folder / "run").rglob("*"))
    assert world.train("run") == 1
    assert "--resume" in capsys.readouterr().err
    assert sorted(path.stat().st_mtime_ns for path in (world.folder / "run").rglob("*")) == before


def test_changed_plugins_stop_a_resume_until_they_are_accepted(world, site, capsys):
    world.train("run", "train.steps=1", "checkpoints.hf=false")
    lock = world.folder / "run/plugins.lock.json"
    lock.write_text(lock.read_text().replace('"sha256": "', '"sha256": "0'))
    assert world.train("run", flags=["--resume"]) == 1
    assert "--accept-plugin-changes" in capsys.readouterr().err
    assert world.train("run", flags=["--resume", "--accept-plugin-changes"]) == 0


def test_a_plugin_from_outside_the_repository_is_used_in_a_run(world, outside_plugin, monkeypatch):
    monkeypatch.syspath_prepend(str(outside_plugin))
    assert world.train("run", "rewards=[{use: vowels, options: {letters: abc}}]", "train.steps=1") == 0
    (row,) = [row for row in read_metrics(world.folder / "run/metrics.jsonl") if "loss" in row]
    assert "reward/vowels/share/mean" in row
    locked = json.loads((world.folder / "run/plugins.lock.json").read_text())
    assert "outside-reward" in {entry["distribution"] for entry in locked}


def test_rlcore_eval_judges_the_trained_model(world, capsys):
    from rlcore.cli.main import main

    world.train("run", "train.steps=1")
    arguments = ["eval", str(world.recipe), "--checkpoint", str(world.folder / "run/hf"), "--json"]
    capsys.readouterr()
    assert main([*arguments, "--out", str(world.folder / "eval")]) == 0
    metrics = json.loads(capsys.readouterr().out)
    last = world.rows("run")[-1]
    assert metrics["eval/held_out/reward"] == last["eval/held_out/reward"]
