"""Curves of a training: few points of a long series, and their drawing as SVG."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from pcdet_freeze.report.html import tag, text
from pcdet_freeze.utils.deferred_numbers import DeferredNumbers, Number

MOST = 400
"""points of a curve"""
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 520.0, 220.0, 62.0, 28.0, 10.0
COLORS = ("#1f6fb2", "#a63d00", "#1a7f37", "#7b3fa0", "#7a5b00", "#5b6876")

Points = list[list[float]]
"""[iteration, value], ..."""


class Series:
    """The mean of each ``stride`` values of a growing series; the stride doubles when there are ``most``.

    Values may be on a device: they are read when the log reads its own (:class:`DeferredNumbers`). A value
    that is not finite does not count.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most, self.stride = most, 1
        self.points: Points = []
        self._sum, self._count, self._seen = 0.0, 0, 0
        self._iterations: deque[int] = deque()
        self._numbers = DeferredNumbers()

    def add(self, iteration: int, value: Number) -> None:
        """Append one value."""
        self._iterations.append(iteration)
        self._numbers.append(value)
        self._add_known()

    def _add_known(self) -> None:
        for value in self._numbers.drain():
            self._add(self._iterations.popleft(), value)

    def read(self) -> Points:
        """All points so far; waits for the device."""
        self._numbers.values()
        self._add_known()
        return self.points + ([[self._last, self._sum / self._count]] if self._count else [])

    def _add(self, iteration: int, value: float) -> None:
        self._seen, self._last = self._seen + 1, float(iteration)
        if math.isfinite(value):
            self._sum, self._count = self._sum + value, self._count + 1
        if self._seen < self.stride:
            return
        if self._count:
            self.points.append([self._last, self._sum / self._count])
        self._sum, self._count, self._seen = 0.0, 0, 0
        if len(self.points) >= self.most:
            self.points = halved(self.points)
            self.stride *= 2

    def to_plain(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        points = self.read()  # which can double the stride
        return {"stride": self.stride, "points": [list(point) for point in points]}

    @classmethod
    def from_plain(cls, plain: Any) -> Series:
        """Continue the series of a checkpoint; a new one where ``plain`` is something else."""
        series = cls()
        if isinstance(plain, Mapping) and isinstance(plain.get("points"), list):
            series.points = [[float(x), float(y)] for x, y in plain["points"]]
            series.stride = max(int(plain.get("stride", 1)), 1)
        return series


def halved(points: Sequence[Sequence[float]]) -> Points:
    """The mean of each two points, at the iteration of the second."""
    pairs = zip(points[::2], points[1::2], strict=False)
    last = [list(points[-1])] if len(points) % 2 else []
    return [[b[0], (a[1] + b[1]) / 2] for a, b in pairs] + last


def draw(title: str, curves: Mapping[str, Sequence[Sequence[float]]], log: bool = False) -> str:
    """An SVG with one line for each curve; "" where there is no point.

    Args:
        log: a logarithmic axis, where all values are positive.
    """
    drawn = {name: [p for p in points if len(p) == 2] for name, points in curves.items() if points}
    if not drawn:
        return ""
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    log = log and min(ys) > 0
    x, y = _Axis(min(xs), max(xs), LEFT, WIDTH - 8), _Axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP, log)
    parts = [*_grid(x, y)]
    for number, (name, points) in enumerate(drawn.items()):
        color = COLORS[number % len(COLORS)]
        parts.append(_line([(x.place(a), y.place(b)) for a, b in points], color, name))
        if len(drawn) > 1:
            parts.append(_label(WIDTH - 12, TOP + 12 + 14 * number, name, "end", color))
    size = f"0 0 {WIDTH:g} {HEIGHT:g}"
    picture = tag("svg", tag("title", text(title)), *parts, viewBox=size, role="img", width=f"{WIDTH:g}",
                  height=f"{HEIGHT:g}")  # fmt: skip
    return tag("figure", tag("figcaption", text(title)), picture)


class _Axis:
    """Maps values to places of the picture."""

    def __init__(self, low: float, high: float, begin: float, end: float, log: bool = False) -> None:
        if low == high:
            low, high = (
                (low / 2, high * 2) if log else (low - abs(low) / 2 - 1e-12, high + abs(high) / 2 + 1e-12)
            )
        self.low, self.high, self.begin, self.end, self.log = low, high, begin, end, log

    def place(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return self.begin + (at - low) / (high - low) * (self.end - self.begin)

    def marks(self, count: int = 4) -> list[float]:
        """Values at equal distances, first and last included."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        steps = [low + (high - low) * step / (count - 1) for step in range(count)]
        return [math.exp(step) for step in steps] if self.log else steps


def _grid(x: _Axis, y: _Axis) -> list[str]:
    parts = []
    for value in y.marks():
        at = f"{y.place(value):.1f}"
        parts.append(tag("line", x1=f"{LEFT:g}", x2=f"{WIDTH - 8:g}", y1=at, y2=at, stroke="#d7dde4"))
        parts.append(_label(LEFT - 6, y.place(value) + 4, f"{value:.3g}", "end"))
    for place, value in zip(("start", "middle", "middle", "end"), x.marks(), strict=True):
        parts.append(_label(x.place(value), HEIGHT - 8, f"{value:.0f}", place))
    return parts


def _line(points: Sequence[tuple[float, float]], color: str, name: str) -> str:
    if len(points) == 1:
        ((a, b),) = points
        return tag("circle", tag("title", text(name)), cx=f"{a:.1f}", cy=f"{b:.1f}", r="3", fill=color)
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    return tag(
        "polyline", tag("title", text(name)), points=path, fill="none", stroke=color, stroke_width="1.6"
    )


def _label(x: float, y: float, words: str, anchor: str, color: str = "#5b6876") -> str:
    return tag(
        "text", text(words), x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, fill=color, font_size="11"
    )
