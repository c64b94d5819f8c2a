from rlcore.telemetry.metrics import MetricsLog, evaluation_names, read_metrics, values


def log(path, attempt, *rows):
    metrics = MetricsLog(path, attempt)
    for step, row in rows:
        metrics.append(step, row)
    metrics.close()


def test_rows_come_back_in_the_order_of_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log(path, 1, (1, {"loss": 3.0}), (2, {"loss": 2.0}))
    assert [(row["step"], row["attempt"], row["loss"]) for row in read_metrics(path)] == [
        (1, 1, 3.0),
        (2, 1, 2.0),
    ]


def test_a_step_done_again_shows_only_its_last_attempt(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log(path, 1, (1, {"loss": 3.0}), (2, {"loss": 2.0, "rollout/groups_dropped/short": 4}))
    log(path, 2, (2, {"loss": 2.5}))
    first, second = read_metrics(path)
    assert first["loss"] == 3.0
    assert second["loss"] == 2.5
    assert "rollout/groups_dropped/short" not in second


def test_evaluation_and_training_of_a_step_may_belong_to_different_attempts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log(path, 1, (4, {"loss": 1.0}))
    log(path, 2, (4, {"eval/sums/pass@1": 0.5}))
    (row,) = read_metrics(path)
    assert (row["loss"], row["eval/sums/pass@1"]) == (1.0, 0.5)


def test_several_evaluation_sets_of_one_step_are_one_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log(path, 1, (0, {"eval/b/pass@1": 0.2}), (0, {"eval/a/pass@1": 0.3}))
    rows = read_metrics(path)
    assert len(rows) == 1
    assert evaluation_names(rows) == ["b", "a"]


def test_a_value_that_is_not_finite_is_null_and_no_value(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log(path, 1, (1, {"kl": float("nan")}), (2, {"kl": 0.5}))
    assert "NaN" not in path.read_text()
    assert values(read_metrics(path), "kl") == [0.5]


def test_a_torn_last_row_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log(path, 1, (1, {"loss": 3.0}))
    with path.open("a") as file:
        file.write('{"attempt": 1, "step": 2, "lo')
    assert len(read_metrics(path)) == 1
