"""A few kinds of picture as SVG text: no dependency, readable in a browser and in a diff, light and dark alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from xml.sax.saxutils import escape

COLOURS = ("#2563a8", "#c2571a", "#3d8b4f", "#8a4fa3", "#a03040", "#6b6b1f", "#2a8c8c", "#777777")
FONT = "font-family='system-ui, sans-serif' font-size='12'"
_INK = "#555"


@dataclass
class Canvas:
    """Elements by their places in pixels, y downwards."""

    width: float
    height: float
    parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = _INK, width: float = 1.0) -> None:
        ends = f"x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'"
        self.parts.append(f"<line {ends} stroke='{colour}' stroke-width='{width:g}'/>")

    def path(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1.5) -> None:
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        join = "stroke-linejoin='round'"
        self.parts.append(
            f"<polyline points='{places}' fill='none' stroke='{colour}' stroke-width='{width:g}' {join}/>"
        )

    def dot(self, x: float, y: float, colour: str) -> None:
        self.parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{colour}'/>")

    def text(self, x: float, y: float, words: str, *, anchor: str = "start", colour: str = _INK) -> None:
        self.parts.append(
            f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{colour}'>{escape(words)}</text>"
        )

    def render(self) -> str:
        head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {self.width:g} {self.height:g}' {FONT}>"
        paper = "<rect width='100%' height='100%' fill='#ffffff'/>"
        return "\n".join([head, paper, *self.parts, "</svg>", ""])


@dataclass(frozen=True)
class Axis:
    """Values → pixels, and the values that are marked."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Four to ten round values."""
        span = (self.high - self.low) or 1.0
        step = next(
            s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1e9) if span / s <= 8
        )
        first = -(-self.low // step)
        return [round((first + i) * step, 6) for i in range(int((self.high - first * step) / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Point:
    """A value with its interval. `x` is a place or a name among the picture's."""

    x: float
    value: float
    low: float
    high: float


def ranked(title: str, rows: Sequence[tuple[str, Point]], *, groups: Sequence[int] | None = None) -> str:
    """One line a name, dot and interval; `groups` colours them."""
    of = groups or [0] * len(rows)
    left, right, top, each = 250.0, 690.0, 40.0, 24.0
    bottom = top + each * len(rows)
    canvas = Canvas(720, bottom + 40)
    axis = _axis([point for _, point in rows], left, right)
    canvas.text(10, 20, title)
    for tick in axis.ticks():
        canvas.line(axis.at(tick), top, axis.at(tick), bottom, "#ddd")
        canvas.text(axis.at(tick), bottom + 18, f"{tick:g}", anchor="middle")
    for i, (name, point) in enumerate(rows):
        y, colour = top + each * (i + 0.5), COLOURS[of[i] % len(COLOURS)]
        canvas.text(left - 12, y + 4, name, anchor="end")
        canvas.line(axis.at(point.low), y, axis.at(point.high), y, colour, 2)
        canvas.dot(axis.at(point.value), y, colour)
    return canvas.render()


def lines(title: str, names: Sequence[str], series: Sequence[tuple[str, Sequence[Point]]]) -> str:
    """Values at named places from left to right, one line a series, intervals as whiskers."""
    left, right, top, bottom = 60.0, 540.0, 40.0, 300.0
    canvas = Canvas(720, 350)
    axis = _axis([point for _, points in series for point in points], bottom, top)
    places = Axis(0, max(1, len(names) - 1), left + 20, right - 20)
    canvas.text(10, 20, title)
    for tick in axis.ticks():
        canvas.line(left, axis.at(tick), right, axis.at(tick), "#ddd")
        canvas.text(left - 8, axis.at(tick) + 4, f"{tick:g}", anchor="end")
    for i, name in enumerate(names):
        canvas.text(places.at(i), bottom + 20, name, anchor="middle")
    for k, (name, points) in enumerate(series):
        colour, shift = COLOURS[k % len(COLOURS)], 3.0 * k
        at = [(places.at(point.x) + shift, axis.at(point.value)) for point in points]
        for (x, y), (to_x, to_y) in pairwise(at):
            canvas.line(x, y, to_x, to_y, colour, 1.5)
        for (x, y), point in zip(at, points, strict=True):
            canvas.line(x, axis.at(point.low), x, axis.at(point.high), colour)
            canvas.dot(x, y, colour)
        canvas.dot(right + 30, top + 20 * k, colour)
        canvas.text(right + 42, top + 20 * k + 4, name, colour=colour)
    return canvas.render()


def scatter(title: str, x_title: str, rows: Sequence[tuple[str, Point]], *, groups: Sequence[int] | None = None) -> str:
    """Dots at (x, value), their names in a column beside them; `x` is a power of ten."""
    of = groups or [0] * len(rows)
    left, right, top, bottom, names = 60.0, 420.0, 40.0, 360.0, 470.0
    canvas = Canvas(720, 420)
    axis = _axis([point for _, point in rows], bottom, top)
    places = Axis(int(min(p.x for _, p in rows)), int(max(p.x for _, p in rows)) + 1, left, right)
    canvas.text(10, 20, title)
    for tick in axis.ticks():
        canvas.line(left, axis.at(tick), right, axis.at(tick), "#ddd")
        canvas.text(left - 8, axis.at(tick) + 4, f"{tick:g}", anchor="end")
    for power in range(int(places.low), int(places.high) + 1):
        canvas.line(places.at(power), top, places.at(power), bottom, "#eee")
        canvas.text(places.at(power), bottom + 18, _power(power), anchor="middle")
    canvas.text((left + right) / 2, bottom + 42, x_title, anchor="middle")
    down = sorted(range(len(rows)), key=lambda i: -rows[i][1].value)
    heights = spread([axis.at(rows[i][1].value) for i in down], bottom)
    for i, y in zip(down, heights, strict=True):
        name, point = rows[i]
        colour = COLOURS[of[i] % len(COLOURS)]
        x, dot = places.at(point.x), axis.at(point.value)
        canvas.line(x, dot, names - 6, y, colour, 0.4)
        canvas.dot(x, dot, colour)
        canvas.text(names, y + 4, name, colour=colour)
    return canvas.render()


def spread(wanted: Sequence[float], bottom: float, gap: float = 17.0) -> list[float]:
    """Heights near those `wanted`, which rise, `gap` apart at least, and above `bottom` if there is room for all."""
    found: list[float] = []
    for y in wanted:
        found.append(max(y, found[-1] + gap) if found else y)
    limit = bottom
    for i in range(len(found) - 1, -1, -1):
        found[i] = min(found[i], limit)
        limit = found[i] - gap
    return found


def _power(of_ten: int) -> str:
    """10**n with a letter for thousands: 10 k, 1 M."""
    return f"{10 ** (of_ten % 3)} {('', 'k', 'M', 'G', 'T')[of_ten // 3]}".strip()


def _axis(points: Sequence[Point], start: float, stop: float) -> Axis:
    low, high = min(point.low for point in points), max(point.high for point in points)
    margin = 0.05 * ((high - low) or 1.0)
    return Axis(low - margin, high + margin, start, stop)
