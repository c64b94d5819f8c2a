"""The geometry of the report's charts: from numbers to SVG paths, ticks and hover data.

Pure arithmetic; the template draws what this module computes. Coordinates are pixels of the view box.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlcore.telemetry.units import number

WIDTH, HEIGHT = 420, 220
WIDE = 760
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 26
MOST_POINTS = 400
MOST_BARS = 60
SMOOTH_FROM = 16

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One curve: `path` through its values and, if they are many, `trend` through their moving average."""

    label: str
    slot: int
    path: str
    trend: str
    dots: list[Point]


@dataclass(frozen=True)
class Bar:
    """One rectangle of a stacked chart."""

    slot: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Plot:
    """Everything that the template needs to draw one chart; `hover` is read by its script."""

    title: str
    note: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    legend: list[tuple[int, str]]
    hover: dict[str, Any]
    lines: list[Line] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Axis:
    """Maps values between `low` and `high` to pixels between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        place = math.log10(value) if self.log else value
        return round(self.start + (place - low) / (high - low) * (self.end - self.start), 2)


def line_plot(
    title: str,
    series: Mapping[str, Sequence[Point]],
    *,
    note: str = "",
    text: Callable[[float], str] = number,
    share: bool = False,
    log: bool = False,
    smooth: bool = True,
) -> Plot | None:
    """Curves over steps, or None where there is nothing to draw.

    `series` maps labels to (step, value) points. `share` fixes the axis to 0 to 100 %; `log` asks for a
    logarithmic axis, given if all values are positive and span more than a decade. A single long curve gets a
    moving average unless `smooth` is off.
    """
    drawn = {label: thin(points) for label, points in series.items() if points}
    if not drawn:
        return None
    everything = [point for points in drawn.values() for point in points]
    x_axis, x_ticks = _step_axis([step for step, _ in everything])
    y_axis, y_ticks = _share_axis() if share else _value_axis([value for _, value in everything], log)
    lines = [
        _line(label, slot, points, x_axis, y_axis, smooth=smooth and len(drawn) == 1)
        for slot, (label, points) in enumerate(drawn.items())
    ]
    legend = [(slot, label) for slot, label in enumerate(drawn)] if len(drawn) > 1 else []
    hover = _line_hover(drawn, x_axis, y_axis, text)
    return Plot(title, note, x_ticks, y_ticks, legend, hover, lines=lines)


def stacked_plot(
    title: str,
    series: Mapping[str, Sequence[float]],
    steps: Sequence[float],
    *,
    note: str = "",
    text: Callable[[float], str] = number,
) -> Plot | None:
    """Wide bars over steps, one layer a series; neighbours are averaged where they would be too many."""
    if not steps:
        return None
    size = math.ceil(len(steps) / MOST_BARS)
    chunks = [range(begin, min(begin + size, len(steps))) for begin in range(0, len(steps), size)]
    means = {label: [_mean([layer[i] for i in chunk]) for chunk in chunks] for label, layer in series.items()}
    totals = [sum(layer[column] for layer in means.values()) for column in range(len(chunks))]
    y_axis, y_ticks = _value_axis([0.0, *totals], log=False)
    slot_width = (WIDE - LEFT - RIGHT) / len(chunks)
    width = min(slot_width * 0.8, 48.0)
    centers = [round(LEFT + (column + 0.5) * slot_width, 2) for column in range(len(chunks))]
    names = [_span(steps[chunk[0]], steps[chunk[-1]]) for chunk in chunks]
    bars = _bars(list(means.values()), centers, width, y_axis)
    every = math.ceil(len(chunks) / 12)
    x_ticks = [Tick(centers[i], f"{steps[chunks[i][0]]:g}") for i in range(0, len(chunks), every)]
    hover = {
        "x": centers,
        "steps": names,
        "series": [
            {"label": label, "slot": slot, "y": None, "text": [text(value) for value in layer]}
            for slot, (label, layer) in enumerate(means.items())
        ],
    }
    return Plot(
        title, note, x_ticks, y_ticks, list(enumerate(means)), hover, bars=bars, width=WIDE, right=WIDE - RIGHT
    )


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: the means of equally long runs of neighbours."""
    size = math.ceil(len(points) / most)
    chunks = [points[begin : begin + size] for begin in range(0, len(points), size)]
    return [(chunk[-1][0], _mean([value for _, value in chunk])) for chunk in chunks]


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over up to `window` neighbours; fewer near the ends, as many on either side."""
    halves = [min(window // 2, i, len(values) - 1 - i) for i in range(len(values))]
    return [_mean(values[i - half : i + half + 1]) for i, half in enumerate(halves)]


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) that enclose low and high."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_label(value: float, step: float) -> str:
    """A label with as many decimals as ticks `step` apart need."""
    if value == 0:
        return "0"
    if abs(value) >= 1e4:
        return number(value).replace(".0", "")
    if step < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    decimals = next((d for d in range(4) if abs(step * 10**d - round(step * 10**d)) < 1e-6), 4)
    return f"{value:.{decimals}f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _span(first: float, last: float) -> str:
    return f"step {first:g}" if first == last else f"steps {first:g}–{last:g}"


def _step_axis(steps: list[float]) -> tuple[Axis, list[Tick]]:
    low, high = min(steps), max(steps)
    if low == high:
        axis = Axis(low - 1, high + 1, LEFT, WIDTH - RIGHT)
        return axis, [Tick(axis(low), f"{low:g}")]
    axis = Axis(low, high, LEFT + 4, WIDTH - RIGHT - 4)
    ticks = [tick for tick in nice_ticks(low, high, 6) if low <= tick <= high and tick == int(tick)]
    return axis, [Tick(axis(tick), number(tick) if tick >= 1e4 else f"{tick:g}") for tick in ticks]


def _share_axis() -> tuple[Axis, list[Tick]]:
    axis = Axis(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    return axis, [Tick(axis(tick / 4), f"{25 * tick} %") for tick in range(5)]


def _value_axis(values: list[float], log: bool) -> tuple[Axis, list[Tick]]:
    low, high = min(values), max(values)
    if log and low > 0 and high / low > 10:
        return _log_axis(low, high)
    if 0 < low < high / 2:
        low = 0.0
    if low == high:
        low, high = low - (abs(low) / 10 or 1.0), high + (abs(high) / 10 or 1.0)
    ticks = nice_ticks(low, high, 4)
    axis = Axis(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    return axis, [Tick(axis(tick), tick_label(tick, ticks[1] - ticks[0])) for tick in ticks]


def _log_axis(low: float, high: float) -> tuple[Axis, list[Tick]]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    axis = Axis(10.0**first, 10.0**last, HEIGHT - BOTTOM, TOP, log=True)
    every = math.ceil((last - first) / 5)
    return axis, [Tick(axis(10.0**power), f"1e{power}") for power in range(first, last + 1, every)]


def _line(label: str, slot: int, points: Sequence[Point], x_axis: Axis, y_axis: Axis, *, smooth: bool) -> Line:
    xs = [x_axis(step) for step, _ in points]
    values = [value for _, value in points]
    trend = ""
    if smooth and len(points) >= SMOOTH_FROM:
        trend = _path(xs, map(y_axis, moving_average(values, max(5, len(points) // 12))))
    ys = [y_axis(value) for value in values]
    dots = list(zip(xs, ys, strict=True)) if len(points) < SMOOTH_FROM else []
    return Line(label, slot, _path(xs, ys), trend, dots)


def _path(xs: Sequence[float], ys: Any) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in zip(xs, ys, strict=True))


def _line_hover(
    series: dict[str, list[Point]], x_axis: Axis, y_axis: Axis, text: Callable[[float], str]
) -> dict[str, Any]:
    steps = sorted({step for points in series.values() for step, _ in points})
    layers = []
    for slot, (label, points) in enumerate(series.items()):
        at = dict(points)
        layers.append(
            {
                "label": label,
                "slot": slot,
                "y": [y_axis(at[step]) if step in at else None for step in steps],
                "text": [text(at[step]) if step in at else None for step in steps],
            }
        )
    return {
        "x": [x_axis(step) for step in steps],
        "steps": [f"step {step:g}" for step in steps],
        "series": layers,
    }


def _bars(layers: list[list[float]], centers: list[float], width: float, y_axis: Axis) -> list[Bar]:
    bars = []
    for column, center in enumerate(centers):
        below = 0.0
        for slot, layer in enumerate(layers):
            top, floor = y_axis(below + layer[column]), y_axis(below)
            below += layer[column]
            if floor > top:
                bars.append(
                    Bar(slot, round(center - width / 2, 2), top, round(width, 2), round(floor - top, 2))
                )
    return bars
