"""Numbers as people read them, for terminal and report."""

import math


def number(value: float | None, digits: int = 3) -> str:
    """About `digits` significant digits: 0.512, 12.3k, 4.1M, 3.2e-07; integers in full; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, int) and abs(value) < 1e4:
        return str(value)
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{_fixed(value / (1e3 if letter == 'k' else size), digits)}{letter}"
    return f"{value:.{digits - 2}e}" if abs(value) < 1e-3 else _fixed(value, digits)


def percent(value: float | None) -> str:
    """A share of 1 as percent with one decimal."""
    return "–" if value is None else f"{100 * value:.1f} %"


def duration(seconds: float | None) -> str:
    """0.4 s, 12 s, 3 min 05 s, 2 h 07 min."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _fixed(value: float, digits: int) -> str:
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:.{max(0, digits - whole)}f}"
