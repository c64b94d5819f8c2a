import json

from safetensors.torch import load_file

from rlcore.telemetry.metrics import read_metrics


def test_the_loss_falls_and_a_checkpoint_for_training_is_left(world):
    assert world.rlcore("sft", "warm") == 0
    losses = [row["loss"] for row in read_metrics(world.folder / "warm/metrics.jsonl")]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert world.train("rl", f"model.checkpoint={world.folder}/warm/hf", "train.steps=1") == 0


def test_a_resumed_warm_start_equals_an_uninterrupted_one(world):
    world.rlcore("sft", "whole")
    world.rlcore("sft", "parts", "sft.steps=2")
    assert world.rlcore("sft", "parts", flags=["--resume"]) == 0
    assert world.rows("parts") == world.rows("whole")
    whole, parts = (load_file(world.folder / name / "hf/model.safetensors") for name in ("whole", "parts"))
    assert all(whole[name].equal(parts[name]) for name in whole)


def test_the_warm_start_ends_early_at_the_wanted_loss_and_stays_ended(world):
    world.rlcore("sft", "whole")
    losses = [row["loss"] for row in read_metrics(world.folder / "whole/metrics.jsonl")]
    wanted = f"sft.stop_at_loss={losses[2]}"
    assert world.rlcore("sft", "short", wanted) == 0
    assert world.rlcore("sft", "short", wanted, flags=["--resume"]) == 0
    assert [row["loss"] for row in read_metrics(world.folder / "short/metrics.jsonl")] == losses[:3]


def test_overrides_of_the_architecture_are_saved_with_the_model(world):
    world.rlcore("sft", "warm", "sft.steps=1", "model.overrides.max_position_embeddings=999")
    config = json.loads((world.folder / "warm/hf/config.json").read_text())
    assert config["max_position_embeddings"] == 999
