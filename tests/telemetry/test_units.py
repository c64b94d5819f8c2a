import pytest

from rlcore.telemetry.units import duration, number, percent


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.0, "0"),
        (7, "7"),
        (0.5124, "0.512"),
        (14.25, "14.2"),
        (-3.14159, "-3.14"),
        (2345.6, "2346"),
        (12345, "12.3k"),
        (4.1e6, "4.10M"),
        (3.2e-7, "3.2e-07"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (12.3, "12 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (None, "–")],
)
def test_durations_are_as_exact_as_one_cares(seconds, text):
    assert duration(seconds) == text


def test_shares_are_percent():
    assert percent(0.3456) == "34.6 %"
