"""Losses by source over the tokens trained, as one SVG: a line a source, names at its right edge, phases marked."""

from __future__ import annotations

import math
from collections.abc import Sequence

from app.compare.svg import COLOURS, Axis, Canvas, spread
from pretraining.card.duration import Logged
from pretraining.card.records import Run

BINS = 120
"""Points a line has at most: each is a mean over a stretch of tokens."""
_COLOURS = (*COLOURS[:7], "#c08a00", "#d05c9a", "#222222")
_LEFT, _RIGHT, _TOP, _BOTTOM = 60.0, 640.0, 62.0, 440.0
_NAMES, _WIDTH, _HEIGHT = 664.0, 860.0, 500.0
_TICKS = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12)
_PHASE_WORD, _PHASE_NUMBER = 56.0, 14.0  # pixels that `phase 2` and `2` need

Places = list[tuple[float, float]]


def loss_picture(run: Run) -> str:
    """Nats a token on a logarithmic axis: differences late in training are small beside the first fall."""
    curves = {source.name: curve(run.lines, source.name, run.tokens) for source in run.recipe.sources}
    curves = {name: points for name, points in curves.items() if points}
    unit, size = ("million", 1e6) if run.tokens >= 1e6 else ("thousand", 1e3)
    values = [loss for points in curves.values() for _, loss in points]
    across = Axis(0, run.tokens / size, _LEFT, _RIGHT)
    up = Axis(math.log(min(values) * 0.93), math.log(max(values) * 1.05), _BOTTOM, _TOP)
    canvas = Canvas(_WIDTH, _HEIGHT)
    canvas.text(10, 20, f"{run.name}: loss by source, nats a token (logarithmic)")
    _grid(canvas, across, up, f"{unit} tokens")
    _phases(canvas, run, across, size)
    running = {source.name for source in run.recipe.sources if source.file}
    drawn = {
        name: [(across.at(at / size), up.at(math.log(loss))) for at, loss in points] for name, points in curves.items()
    }
    for at, (name, points) in enumerate(drawn.items()):
        _line(canvas, points, _COLOURS[at % len(_COLOURS)], 2.2 if name in running else 1.2)
    _names(canvas, drawn, running)
    return canvas.render()


def curve(lines: Sequence[Logged], source: str, tokens: int) -> list[tuple[float, float]]:
    """(tokens trained, loss), means over bins of equal numbers of tokens, each line by the tokens it covers; bins in
    which the source does not come are left out. Losses of 0 cannot be drawn on a logarithmic axis: at least 0.01."""
    sums: dict[int, list[float]] = {}
    for line in lines:
        if source in line.losses:
            bin_ = min(BINS - 1, line.end * BINS // max(tokens, 1))
            total = sums.setdefault(bin_, [0.0, 0.0, 0.0])
            for index, value in enumerate((line.tokens, line.tokens * line.end, line.tokens * line.losses[source])):
                total[index] += value
    return [(at / count, max(loss / count, 0.01)) for _, (count, at, loss) in sorted(sums.items())]


def _grid(canvas: Canvas, across: Axis, up: Axis, words: str) -> None:
    for tick in _TICKS:
        if up.low <= math.log(tick) <= up.high:
            y = up.at(math.log(tick))
            canvas.line(_LEFT, y, _RIGHT, y, "#ddd")
            canvas.text(_LEFT - 8, y + 4, f"{tick:g}", anchor="end")
    for tick in across.ticks():
        canvas.line(across.at(tick), _BOTTOM, across.at(tick), _BOTTOM + 5)
        canvas.text(across.at(tick), _BOTTOM + 20, f"{tick:g}", anchor="middle")
    canvas.line(_LEFT, _BOTTOM, _RIGHT, _BOTTOM)
    canvas.text((_LEFT + _RIGHT) / 2, _BOTTOM + 44, words, anchor="middle")


def _phases(canvas: Canvas, run: Run, across: Axis, size: float) -> None:
    """A line where each phase begins, and its name above, as far as there is room."""
    begin = tokens = 0
    for number, (phase, end) in enumerate(zip(run.recipe.phases, run.recipe.phase_ends(), strict=True), 1):
        if begin >= run.step:
            break
        start = across.at(tokens / size)
        tokens += (min(end, run.step) - begin) * phase.rows * phase.length
        begin = end
        room = across.at(tokens / size) - start
        if number > 1:
            canvas.line(start, _TOP - 18, start, _BOTTOM, "#999")
        if room >= _PHASE_NUMBER:
            word = f"phase {number}" if room >= _PHASE_WORD else str(number)
            canvas.text(start + 4, _TOP - 8, word)


def _line(canvas: Canvas, points: Places, colour: str, width: float) -> None:
    if len(points) == 1:
        canvas.dot(*points[0], colour)
    else:
        canvas.path(points, colour, width)


def _names(canvas: Canvas, drawn: dict[str, Places], running: set[str]) -> None:
    """At the height of each line's end, apart; a thin line leads there from those that go on to the end."""
    names = list(drawn)
    down = sorted(names, key=lambda name: drawn[name][-1][1])
    for name, y in zip(down, spread([drawn[name][-1][1] for name in down], _BOTTOM), strict=True):
        colour = _COLOURS[names.index(name) % len(_COLOURS)]
        x, height = drawn[name][-1]
        if x > _RIGHT - 30:
            canvas.line(x, height, _NAMES - 6, y - 1, colour, 0.5)
        canvas.text(_NAMES, y + 4, name + (" (running text)" if name in running else ""), colour=colour)
