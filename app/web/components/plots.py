"""Charts as plain geometry: numbers in, SVG path data out, so that a page can draw them in its own colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT = 600.0, 200.0    # user units of the drawing; the page stretches it
MAX_POINTS = 300
Point = tuple[int, float]       # step, value


def loss_chart(
    losses: Sequence[Point], validation: Sequence[Point], best_step: int, last_step: int, *, log: bool = False
) -> dict[str, Any]:
    """Lay out a run's losses: a faint raw line, a smooth one, and the validation losses as a line with dots.

    Both share the horizontal axis (steps 0 … ``last_step``), but each has its own vertical one, because they are
    measured on different noise: only their movements compare, not their heights. With ``log`` both are logarithmic.

    Returns:
        Path data under ``raw``, ``smooth`` and ``validation``; dots as ``{x, y, best}`` in per cent; the labels
        of the vertical axis (``low``, ``high``: the losses at the bottom and the top); ``empty`` without any loss.
    """
    losses = [point for point in losses if math.isfinite(point[1]) and (point[1] > 0 or not log)]
    if not losses:
        return {"empty": True}
    smooth = moving_average(losses)
    if log:
        losses, smooth, validation = (_logarithms(points) for points in (losses, smooth, validation))
    name = (lambda value: 10**value) if log else (lambda value: value)
    low, high = axis_limits([value for _, value in downsample(losses)], [value for _, value in smooth])
    dots = [(step, value) for step, value in validation if math.isfinite(value)]
    dot_low, dot_high = axis_limits([value for _, value in dots])
    return {
        "raw": svg_path(downsample(losses), last_step, low, high),
        "smooth": svg_path(downsample(smooth), last_step, low, high),
        "validation": svg_path(dots, last_step, dot_low, dot_high),
        "dots": [{**_dot(dot, last_step, dot_low, dot_high, dot[0] == best_step), "value": f"{name(dot[1]):.4g}"}
                 for dot in dots],
        "low": f"{name(low):.2g}", "high": f"{name(high):.2g}", "last": last_step, "empty": False,
    }   # fmt: skip


def _logarithms(points: Sequence[Point]) -> list[Point]:
    return [(step, math.log10(value)) for step, value in points if value > 0]


def line_through(lines: Sequence[tuple[str, str, Sequence[Point]]], last_step: int) -> dict[str, Any]:
    """Lay out lines over the steps of a run, all on one vertical axis that has 0 in it.

    Args:
        lines: class of the path, name for the legend, points.
        last_step: at the right end.

    Returns:
        Paths with names and classes under ``lines``; the labels of the axes: ``low``, ``high``, ``last``.
    """
    values = [value for _, _, points in lines for _, value in points]
    low, high = axis_limits([0.0], values)
    low = low if min(values, default=0) < 0 else 0.0
    shown = [{"kind": kind, "name": name, "path": svg_path(downsample(points), last_step, low, high)}
             for kind, name, points in lines]   # fmt: skip
    return {"lines": shown, "low": f"{low:.2g}", "high": f"{high:.2g}", "last": last_step}


def line_chart(lines: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Lay out lines of equal length over one pair of axes, the vertical one from 0.

    Returns:
        Path data under ``first`` and, of a second line, ``second``; the label of the top under ``high``.
    """
    top = 1.08 * max(value for line in lines for value in line) or 1.0
    paths = [svg_path(list(enumerate(line)), len(line) - 1, 0.0, top) for line in lines]
    return {"first": paths[0], "second": paths[1] if len(paths) > 1 else "", "high": f"{top:.2g}"}


def moving_average(points: Sequence[Point], keep: float = 0.9) -> list[Point]:
    """Exponential moving average, corrected for its start (Kingma & Ba 2015, section 3).

    >>> [round(value, 6) for _, value in moving_average([(1, 2.0), (2, 2.0), (3, 2.0)])]
    [2.0, 2.0, 2.0]
    """
    total, result = 0.0, []
    for count, (step, value) in enumerate(points, start=1):
        total = keep * total + (1 - keep) * value
        result.append((step, total / (1 - keep**count)))
    return result


def downsample(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most ``most`` points, evenly picked, the last one always among them."""
    if len(points) <= most:
        return list(points)
    stride = len(points) / most
    return [points[min(len(points) - 1, math.ceil((i + 1) * stride) - 1)] for i in range(most)]


def axis_limits(values: Sequence[float], whole: Sequence[float] = ()) -> tuple[float, float]:
    """Bottom and top of an axis, with a little room: all of ``whole``, and ``values`` but for the wildest few.

    Of ``values`` the 2nd to the 98th percentile counts, so that one spike does not flatten everything else.
    """
    if not values:
        return 0.0, 1.0
    ordered = sorted(values)
    low = min([ordered[int(0.02 * (len(ordered) - 1))], *whole])
    high = max([ordered[math.ceil(0.98 * (len(ordered) - 1))], *whole])
    room = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    return low - room, high + room


def svg_path(points: Sequence[Point], last_step: int, low: float, high: float) -> str:
    """SVG path data through the points, in a WIDTH × HEIGHT drawing; what leaves the axis is cut at its edge."""
    places = [_position(point, last_step, low, high) for point in points]
    return "M" + "L".join(f"{x * WIDTH:.1f} {y * HEIGHT:.1f}" for x, y in places) if places else ""


def _position(point: Point, last_step: int, low: float, high: float) -> tuple[float, float]:
    """Where a point is, as shares of the width (from the left) and of the height (from the top)."""
    height = (point[1] - low) / (high - low)
    return point[0] / max(1, last_step), 1 - min(1.0, max(0.0, height))


def _dot(point: Point, last_step: int, low: float, high: float, best: bool) -> dict[str, Any]:
    x, y = _position(point, last_step, low, high)
    return {"x": f"{100 * x:.2f}", "y": f"{100 * y:.2f}", "best": best, "step": point[0], "value": f"{point[1]:.4g}"}
