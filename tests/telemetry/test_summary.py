import json

import pytest

from rlcore.telemetry.run_folder import RunFolder, RunPaths
from rlcore.telemetry.summary import summarize, tokens_per_second, wall_seconds, write_summary


def test_a_run_comes_down_to_a_few_numbers(finished_run):
    summary = summarize(finished_run, "tiny")
    assert summary.pop("seconds") >= 0
    assert summary == {
        "model": "tiny",
        "pass_at_1_before": 0.25,
        "pass_at_1_after": 1.0,
        "peak_rss_gb": 1.5,
        "tokens_per_second": 25.0,
        "max_logprob_gap": 2e-6,
    }


def test_what_was_not_measured_is_null(tmp_path):
    RunFolder.create(tmp_path, resume=False).close()
    summary = json.loads(write_summary(tmp_path, "tiny").read_text())
    assert summary["pass_at_1_before"] is summary["tokens_per_second"] is summary["max_logprob_gap"] is None


def test_seconds_and_memory_include_the_warm_start_which_is_found_again(finished_run, tmp_path):
    with RunFolder.create(tmp_path / "sft", resume=False) as warm:
        warm.metrics.append(1, {"loss": 1.0, "memory/peak_rss_gb": 2.5})
    summary = summarize(finished_run, "tiny", warm_start=tmp_path / "sft")
    assert summary["peak_rss_gb"] == 2.5
    assert (finished_run / summary["warm_start"]).samefile(tmp_path / "sft")


def test_throughput_counts_whole_steps():
    rows = [
        {"tokens/generated": 100, "time/step": 1.0},
        {"tokens/generated": 100, "time/step": 3.0},
        {"step": 0},
    ]
    assert tokens_per_second(rows) == 50.0


def test_throughput_leaves_evaluations_and_checkpoints_out():
    row = {"tokens/generated": 100, "time/step": 10.0, "time/evaluation": 7.0, "time/checkpoint": 1.0}
    assert tokens_per_second([row]) == 50.0


def test_time_between_attempts_does_not_count(tmp_path):
    events = [{"time": 10.0, "attempt": 1, "kind": "start"}, {"time": 500.0, "attempt": 2, "kind": "start"}]
    RunPaths(tmp_path).events.write_text("".join(json.dumps(event) + "\n" for event in events))
    rows = [{"time": 15.0, "attempt": 1, "step": 1}, {"time": 507.0, "attempt": 2, "step": 1}]
    RunPaths(tmp_path).metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert wall_seconds(tmp_path) == pytest.approx(12.0)
