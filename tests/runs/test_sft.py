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
    (world.folder / "parts/hf").rename(world.folder / "hf-after-2")
    assert world.rlcore("sft", "parts", flags=["--resume"]) == 0
    assert world.rows("parts") == world.rows("whole")
    whole, parts = (load_file(world.folder / name / "hf/model.safetensors") for name in ("whole", "parts"))
    assert all(whole[name].equal(parts[name]) for name in whole)
