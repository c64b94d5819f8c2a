from rlcore_glm45.demo import DEMO

from rlcore.cli.main import main
from rlcore.telemetry.metrics import read_metrics


def test_the_tiny_recipe_trains_and_the_engine_follows(tmp_path):
    DEMO.write(tmp_path)
    sizes = {"rollout.prompts_per_step": 4, "rollout.samples_per_prompt": 4, "train.steps": 3}
    places = {"model.checkpoint": tmp_path / "model", "data.path": tmp_path / "train.jsonl"}
    values = {**sizes, **places, "sft": "null", "eval.datasets": [], "eval.every": "null"}
    settings = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    assert main(["train", "glm45/tiny", "--run-dir", str(tmp_path / "run"), "--quiet", *settings]) == 0
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 3
    assert max(row["logprob_gap/max"] for row in rows) <= 1e-5
