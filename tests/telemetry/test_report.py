import re

import pytest

from rlcore.errors import RlcoreError
from rlcore.telemetry.report import prompt_text, write_report
from rlcore.telemetry.run_folder import RunFolder
from rlcore.telemetry.summary import write_summary

LOADS = re.compile(r"""(?:src|href|action|data)\s*=\s*["']|@import|url\(""", re.IGNORECASE)


def page_of(run):
    return write_report(run).read_text(encoding="utf-8")


def outside_of_text(page):
    """The page without its samples and its recipe, which may well quote an address."""
    return re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL)


def test_the_page_tells_the_run(finished_run):
    page = page_of(finished_run)
    assert "<em>25.0 %</em> → 100.0 %" in page
    assert "+75.0 points over 2 evaluations" in page
    assert "step 0 against step 2" in page
    for title in (
        "Evaluation",
        "Reward",
        "Reward by part",
        "Log-prob gap",
        "Time per step",
        "zero_std",
        "stall",
    ):
        assert title in page


def test_the_page_loads_nothing(finished_run):
    page = outside_of_text(page_of(finished_run))
    assert not re.search(r"https?://|//cdn", page)
    assert not LOADS.search(page)


def test_hostile_text_is_shown_and_never_run(finished_run):
    page = page_of(finished_run)
    assert "<img" not in page
    assert "<script>alert" not in page
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert" in page


def test_credentials_of_the_recipe_stay_at_home(finished_run):
    page = page_of(finished_run)
    assert "hf_very_secret" not in page
    assert "HF_TOKEN: (hidden)" in page


def test_a_metric_that_was_never_finite_has_no_curve(finished_run):
    assert "KL to the reference" not in page_of(finished_run)


def test_a_metric_that_the_report_does_not_know_is_drawn_under_its_name(tmp_path):
    with RunFolder.create(tmp_path, resume=False) as run:
        run.metrics.append(1, {"clip_fraction": 0.1, "loss": 0.5})
    page = page_of(tmp_path)
    assert "1 more curve<" in page
    assert "<b>clip_fraction</b>" in page


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    run = RunFolder.create(tmp_path, resume=False)
    page = page_of(tmp_path)
    run.close()
    assert "No step has ended yet" in page
    assert 'class="badge running"' in page


def test_a_run_of_a_single_row_has_a_page(tmp_path):
    with RunFolder.create(tmp_path, resume=False) as run:
        run.metrics.append(1, {"reward/mean": 0.5, "time/step": 1.0, "time/other": 1.0})
    page = page_of(tmp_path)
    assert "Reward" in page
    assert 'class="badge completed"' in page


def test_a_killed_run_is_called_unfinished(finished_run):
    events = finished_run / "events.jsonl"
    events.write_text("".join(events.read_text().splitlines(keepends=True)[:-1]) + '{"time": 1')
    assert 'class="badge unfinished"' in page_of(finished_run)


def test_a_failed_run_says_why(tmp_path):
    with pytest.raises(ValueError, match="reward"), RunFolder.create(tmp_path, resume=False):
        raise ValueError("reward sums raised on sample 3")
    assert "reward sums raised on sample 3" in page_of(tmp_path)


def test_the_warm_start_adds_its_loss(finished_run, tmp_path):
    with RunFolder.create(tmp_path / "sft", resume=False) as warm:
        for step in range(1, 5):
            warm.metrics.append(step, {"loss": 1.0 / step})
    write_summary(finished_run, "tiny", warm_start=tmp_path / "sft")
    assert "Warm start: loss" in page_of(finished_run)


def test_a_supervised_run_has_a_page_of_its_own(tmp_path):
    with RunFolder.create(tmp_path, resume=False) as run:
        for step in range(1, 40):
            run.metrics.append(step, {"loss": 1.0 / step, "lr": 1e-3, "time/train": 0.1, "time/step": 0.1})
    assert "Learning rate" in page_of(tmp_path)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(RlcoreError, match="not a run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_chat_names_its_roles_unless_it_is_one_message():
    question = {"role": "user", "content": "1 + 1?"}
    assert prompt_text([question]) == "1 + 1?"
    assert prompt_text([{"role": "system", "content": "Add."}, question]) == "system: Add.\nuser: 1 + 1?"
