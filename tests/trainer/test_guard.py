import pytest

from rlcore.config.schema import BadSteps
from rlcore.errors import Problem
from rlcore.trainer.guard import BadStepError, SpikeError, StepGuard

NOT_FINITE = BadStepError(Problem("optimizer step 1", "loss nan"), {})


def check(guard, *norms):
    for norm in norms:
        guard.check(1, {"grad_norm": norm})


def test_without_a_factor_no_norm_is_a_spike():
    check(StepGuard(BadSteps()), *[1.0] * 20, 1e9)


def test_a_norm_far_above_the_median_is_a_spike():
    guard = StepGuard(BadSteps(spike_factor=5))
    check(guard, *[1.0] * 20, 4.9)
    with pytest.raises(SpikeError, match=r"gradient norm 6 is over 5 times the median 1"):
        check(guard, 6.0)


def test_a_few_steps_have_no_usual_norm():
    check(StepGuard(BadSteps(spike_factor=2)), 1.0, 1.0, 100.0)


def test_steps_without_a_gradient_make_no_spike_of_the_next_one():
    check(StepGuard(BadSteps(spike_factor=5)), *[0.0] * 20, 1.0)


def test_spikes_are_left_out_even_where_a_nan_ends_the_run():
    guard = StepGuard(BadSteps(on_nonfinite="fail"))
    guard.leave_out(SpikeError(Problem("optimizer step 1", "gradient norm 6"), {}))
    with pytest.raises(BadStepError):
        guard.leave_out(NOT_FINITE)


def test_a_good_step_starts_the_count_anew():
    guard = StepGuard(BadSteps(max_in_a_row=2))
    for _ in range(3):
        guard.leave_out(NOT_FINITE)
        guard.leave_out(NOT_FINITE)
        check(guard, 1.0)
    guard.leave_out(NOT_FINITE)
    guard.leave_out(NOT_FINITE)
    with pytest.raises(BadStepError, match="loss nan"):
        guard.leave_out(NOT_FINITE)


def test_a_resumed_guard_judges_alike():
    guard = StepGuard(BadSteps(spike_factor=5))
    check(guard, *[1.0] * 20)
    resumed = StepGuard(BadSteps(spike_factor=5))
    resumed.load_state_dict(guard.state_dict())
    with pytest.raises(SpikeError):
        check(resumed, 6.0)
