import io

import pytest
from rich.console import Console

from rlcore.telemetry.progress import Progress, time_split

ROW = {
    "step": 3,
    "reward/mean": 0.5,
    "pass_rate": 0.25,
    "kl": 1e-4,
    "entropy": 0.6,
    "response/length_mean": 14.25,
    "tokens/per_second": 2345.0,
    "logprob_gap/max": 3e-6,
    "time/rollout": 3.0,
    "time/train": 1.0,
    "time/step": 4.0,
}


class Clock:
    """Time that passes only when told."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def output():
    return io.StringIO()


def terminal(output, width=200):
    return Console(file=output, force_terminal=True, width=width)


def test_without_a_terminal_a_step_is_one_line_of_plain_text(output):
    with Progress(60, "demo", console=Console(file=output)) as progress:
        progress.step(ROW)
    (line,) = output.getvalue().splitlines()
    assert line.startswith(
        "step 3/60  reward 0.500  pass 25.0 %  KL 1.0e-04  entropy 0.600  length 14.2  tok/s 2345"
    )
    assert "gap 3.0e-06" in line
    assert "rollout 75% train 25%" in line
    assert "\x1b" not in line


def test_the_time_left_follows_from_the_steps_done_since_the_start(output):
    clock = Clock()
    with Progress(10, "demo", first_step=2, console=Console(file=output), clock=clock) as progress:
        clock.now = 20.0
        progress.step({"step": 4})
    assert output.getvalue().rstrip().endswith("left 1 min 00 s")


def test_a_long_rollout_speaks_twice_a_minute_in_a_log(output):
    clock = Clock()
    with Progress(10, "demo", console=Console(file=output), clock=clock) as progress:
        for done in range(100):
            clock.now += 1.0
            progress.status("rollout", done, 512)
    assert output.getvalue().splitlines() == ["rollout 29/512", "rollout 59/512", "rollout 89/512"]


def test_a_terminal_shows_an_aligned_table_and_what_is_going_on(output):
    with Progress(60, "demo", console=terminal(output)) as progress:
        progress.status("rollout", 312, 512)
        progress.step(ROW)
    text = output.getvalue()
    assert "reward     pass       KL" in text
    assert " 0.500   25.0 %  1.0e-04" in text


def test_a_narrow_terminal_shows_the_columns_that_fit(output):
    with Progress(60, "demo", console=terminal(output, width=40)) as progress:
        progress.step(ROW)
    assert "pass" in output.getvalue()
    assert "tok/s" not in output.getvalue()


def test_an_evaluation_is_told_in_percent(output):
    with Progress(60, "demo", console=Console(file=output)) as progress:
        progress.evaluation({"step": 0, "eval/sums/pass@1": 0.25, "eval/sums/response_length": 9.5})
    assert output.getvalue().strip() == "evaluation at step 0:  sums/pass@1 25.0 %  sums/response_length 9.50"


def test_quiet_prints_warnings_alone(output):
    with Progress(60, "demo", quiet=True, console=Console(file=output)) as progress:
        progress.step(ROW)
        progress.note("[no markup] slow")
    assert output.getvalue() == "[no markup] slow\n"


def test_phases_are_listed_by_share():
    assert time_split(ROW) == "rollout 75% train 25%"
    assert time_split({"step": 1}) == ""
