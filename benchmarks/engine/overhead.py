"""How much of a decode step is Python that looks at every row: events made in the engine, handed out in the event loop.

    python -m benchmarks.engine.overhead [--model tiny] [--rows 8 64] [--tokens 64] [--rounds 5] [--threads 2]

All rows are prefilled at once and decode together; steps in which rows come or go are left out. Of each step three
parts are timed: the model's forward, the choice of tokens, and what is left, which is Python in the engine. Its events
are then handed out by a board, as the event loop does on its own thread meanwhile. The slope between the fewest rows
and the most tells the rows' own share from what every step costs. Prints, keeps nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from app.engine.admission import Admission
from app.engine.board import FlightBoard
from app.engine.flights import Flight
from app.engine.strikes import Strikes
from app.engine.types import Event, Request
from benchmarks.engine.chorus_engine import ChorusPeer
from benchmarks.engine.models import SHAPES, model_folder
from benchmarks.engine.wire import ROOT
from benchmarks.engine.workload import Workload

T = TypeVar("T")
LIMIT = 0.03
"""The share of a step beyond which Python for each row is worth taking out."""


@dataclass(frozen=True)
class Step:
    """Seconds of one decode step: in the model, in choosing tokens, all together, and outside it on the board."""

    model: float
    choice: float
    whole: float
    board: float

    @property
    def python(self) -> float:
        return self.whole - self.model - self.choice


@dataclass(frozen=True)
class Shares:
    """Medians over steps, in seconds, for `rows` rows."""

    rows: int
    step: float
    model: float
    choice: float
    python: float
    board: float

    @classmethod
    def of(cls, rows: int, steps: Sequence[Step]) -> Shares:
        def middle(value: Callable[[Step], float]) -> float:
            return statistics.median(map(value, steps))

        return cls(
            rows,
            middle(lambda step: step.whole),
            middle(lambda step: step.model),
            middle(lambda step: step.choice),
            middle(lambda step: step.python),
            middle(lambda step: step.board),
        )


def for_each_row(few: Shares, many: Shares) -> tuple[float, float]:
    """Seconds that one more row adds in Python: (in the engine, on the board)."""
    rows = many.rows - few.rows
    return (many.python - few.python) / rows, (many.board - few.board) / rows


class Stopwatch:
    """Adds up the seconds spent in a function that it stands in for."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, call: Callable[..., T]) -> Callable[..., T]:
        def timed(*args: Any, **kwargs: Any) -> T:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return timed

    def read(self) -> float:
        taken, self.seconds = self.seconds, 0.0
        return taken


class Probe:
    """An engine whose decode steps are taken apart."""

    def __init__(self, peer: ChorusPeer) -> None:
        self._peer, self._engine = peer, peer.engine
        self._model, self._choice = Stopwatch(), Stopwatch()
        self._engine._isolating.decode = self._model.around(self._engine._isolating.decode)  # type: ignore[method-assign]
        self._engine._state.advance = self._choice.around(self._engine._state.advance)  # type: ignore[method-assign]

    def steps(self, turn: int, rows: int) -> list[Step]:
        """The steps of one round in which all `rows` rows decode and none ends."""
        requests = self._peer.inputs(self._peer.asks(turn, rows), "")
        board = self._board(requests)
        for request in requests:
            self._engine.submit(request)
        found = []
        while not self._engine.idle:
            before = self._engine.stats().steps_decode
            self._model.read(), self._choice.read()
            began = time.perf_counter()
            events = self._engine.step()
            whole = time.perf_counter() - began
            handed = self._hand_out(board, events)
            steady = len(events) == rows and all(event.finish is None for event in events)
            if steady and self._engine.stats().steps_decode == before + 1:
                found.append(Step(self._model.read(), self._choice.read(), whole, handed))
        return found[1:]  # the first one also lines the rows up

    def _board(self, requests: Sequence[Request]) -> FlightBoard:
        admission, strikes = Admission(self._engine.config), Strikes()
        board = FlightBoard(admission, self._engine.stats(), strikes)
        for request in requests:
            board.add([Flight(request, i, None) for i in range(len(request.rows))])
        return board

    @staticmethod
    def _hand_out(board: FlightBoard, events: Sequence[Event]) -> float:
        began = time.perf_counter()
        board.hand_out([(time.monotonic(), events)])
        return time.perf_counter() - began


def lines(found: Sequence[Shares]) -> list[str]:
    """A table, and what one row costs where there are two numbers of rows."""
    told = ["rows   step ms   model  choice  engine's Python  event loop's board  both ÷ step"]
    for one in found:
        share = (one.python + one.board) / one.step
        told.append(
            f"{one.rows:4d}  {1000 * one.step:8.3f}  {1000 * one.model:6.3f}  {1000 * one.choice:6.3f}"
            f"  {1000 * one.python:8.3f} ({one.python / one.step:5.1%})"
            f"  {1000 * one.board:10.3f} ({one.board / one.step:5.1%})  {share:10.1%}"
        )
    few, many = found[0], found[-1]
    if many.rows > few.rows:
        engine, board = for_each_row(few, many)
        share = many.rows * engine / many.step
        word = "beyond" if share > LIMIT else "within"
        told.append(
            f"each row adds {1e6 * engine:.2f} µs of Python in the engine and {1e6 * board:.2f} µs on the board: with "
            f"{many.rows} rows {share:.1%} of the step between steps ({word} {LIMIT:.0%}), and "
            f"{many.rows * board / many.step:.1%} beside it"
        )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=list(SHAPES), default="tiny")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=ROOT / ".peers" / "work", help="where models are kept")
    given = parser.parse_args()
    folder = model_folder(given.work.resolve(), given.model)
    rows = sorted(given.rows)
    options = {"model": given.model, "folder": str(folder), "threads": given.threads, "rows": rows[-1]}
    peer = ChorusPeer({**options, "context": 512, "prompt_cache_mib": 256})
    peer.prepare(Workload(prompt=(5, 100), new_tokens=given.tokens, seed=61).as_json())
    probe = Probe(peer)
    steps: dict[int, list[Step]] = {count: [] for count in rows}
    for turn in range(given.rounds):
        for i, count in enumerate(rows):  # in turns, as everywhere
            steps[count] += probe.steps(100 + turn * len(rows) + i, count)
    print(f"{given.model}, {given.threads} threads, torch {torch.__version__}; medians of {len(steps[rows[-1]])} steps")
    print("\n".join(lines([Shares.of(count, steps[count]) for count in rows])))


if __name__ == "__main__":
    main()
