import pytest

from rlcore.telemetry import charts


def test_ticks_are_round_and_enclose_the_values():
    assert charts.nice_ticks(0.13, 0.97, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert charts.nice_ticks(-3, 12, 5) == pytest.approx([-5, 0, 5, 10, 15])


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [
        (0.25, 0.25, "0.25"),
        (0.2, 0.2, "0.2"),
        (5, 5, "5"),
        (2e-5, 1e-5, "2e-5"),
        (2.5e-5, 2.5e-5, "2.5e-5"),
        (0.0, 1e-5, "0"),
        (20000, 10000, "20k"),
    ],
)
def test_tick_labels_have_the_decimals_that_they_need(value, step, text):
    assert charts.tick_label(value, step) == text


def test_a_series_without_points_is_no_plot():
    assert charts.line_plot("Reward", {"reward": []}) is None
    assert charts.stacked_plot("Time", {"train": []}, []) is None


def test_a_single_point_is_drawn_inside_the_chart():
    plot = charts.line_plot("Reward", {"reward": [(0, 0.5)]})
    ((x, y),) = plot.lines[0].dots
    assert plot.left < x < plot.right
    assert plot.top < y < plot.bottom
    assert [tick.label for tick in plot.x_ticks] == ["0"]


def test_long_curves_are_thinned_and_get_a_trend():
    plot = charts.line_plot("Loss", {"loss": [(step, step % 7) for step in range(10_000)]})
    assert len(plot.hover["x"]) <= charts.MOST_POINTS
    assert plot.lines[0].trend


def test_curves_of_different_steps_share_one_axis():
    plot = charts.line_plot("Evaluation", {"a": [(0, 0.1), (10, 0.5)], "b": [(5, 0.2)]}, share=True)
    assert plot.hover["steps"] == ["step 0", "step 5", "step 10"]
    assert plot.hover["series"][1]["text"] == [None, "0.200", None]


def test_gaps_over_decades_get_a_logarithmic_axis_unless_one_is_zero():
    points = [(1, 1e-7), (2, 1e-5)]
    assert [t.label for t in charts.line_plot("Gap", {"max": points}, log=True).y_ticks] == [
        "1e-7",
        "1e-6",
        "1e-5",
    ]
    assert charts.line_plot("Gap", {"max": [*points, (3, 0.0)]}, log=True).y_ticks[0].label == "0"


def test_stacked_bars_average_neighbours_when_they_are_many():
    steps = list(range(1, 121))
    plot = charts.stacked_plot("Time", {"rollout": [2.0] * 120, "train": [1.0] * 120}, steps)
    assert len(plot.bars) == 120
    assert plot.hover["steps"][0] == "steps 1–2"
    assert plot.hover["series"][0]["text"][0] == "2.00"


def test_a_moving_average_keeps_a_straight_line_straight():
    assert charts.moving_average([1, 2, 3, 4, 5, 6], window=5) == pytest.approx([1, 2, 3, 4, 5, 6])
