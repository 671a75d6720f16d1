"""Requests a second, by the engine that serves: prompts of all tasks in one mixed batch, a changed model in its own.

`ROWS` rows are in flight in all. One frozen model answers them together, whatever their tasks. A changed model answers
its own task alone, so that with T tasks each has a T-th of the rows in flight.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from app.backbone import Backbone, Row, SoftPrompt, Verbalizer
from app.compare.setting import Setting
from app.engine import Engine, EngineConfig, Request, RowRequest, Sampling
from app.errors import EngineFailure
from app.training.examples import Encoder

ROWS, REQUESTS, ROUNDS = 32, 64, 5
"""Rows in flight, requests of each task, and rounds behind a first one; the fastest round counts."""

_NEVER = 1e12  # a deadline


@dataclass(frozen=True)
class Ask:
    """One request: its rows, each with its prompt (several for an ensemble), and what is asked of them."""

    rows: tuple[Row, ...]
    prompts: tuple[tuple[str, SoftPrompt] | None, ...]
    verbalizer: Verbalizer | None
    max_tokens: int

    def request(self, name: str) -> Request:
        sampling = Sampling(self.max_tokens) if self.verbalizer is None else None
        rows = tuple(
            RowRequest(row, prompt[0] if prompt else None, sampling, self.verbalizer)
            for row, prompt in zip(self.rows, self.prompts, strict=True)
        )
        return Request(name, rows, _NEVER, patient=True)


def asks_of(
    setting: Setting, encoder: Encoder, prompts: Sequence[tuple[str, SoftPrompt] | None], requests: int = REQUESTS
) -> list[Ask]:
    """Test rows of a task, from the first on again where they are few."""
    rows = [one.row for one in setting.encoded(encoder)[:requests]]
    return [
        Ask((rows[i % len(rows)],) * len(prompts), tuple(prompts), encoder.verbalizer, setting.max_tokens)
        for i in range(requests)
    ]


def mixed(asks: Sequence[Sequence[Ask]]) -> list[Ask]:
    """One of each task in turn."""
    return [one for of in zip(*asks, strict=True) for one in of]


def requests_per_second(backbone: Backbone, asks: Sequence[Ask], *, rows: int = ROWS, rounds: int = ROUNDS) -> float:
    """All asks at once to an engine that runs `rows` rows. Raises EngineFailure where a row failed."""
    longest = max(row.total for ask in asks for row in ask.rows)
    words = max((ask.verbalizer.branch_tokens if ask.verbalizer else ask.max_tokens) for ask in asks)
    most = max(len(ask.rows) for ask in asks)
    engine = Engine(backbone, EngineConfig(max_rows=max(rows, most), max_context=longest + words + 1))
    for ask in asks:
        for prompt in ask.prompts:
            if prompt is not None:
                engine.load(*prompt)
    times = [_run(engine, asks, turn) for turn in range(rounds + 1)]
    return len(asks) / min(times[1:])


def _run(engine: Engine, asks: Sequence[Ask], turn: int) -> float:
    began = time.perf_counter()
    for i, ask in enumerate(asks):
        engine.submit(ask.request(f"{turn}.{i}"))
    while not engine.idle:
        for event in engine.step():
            if event.error is not None:
                raise EngineFailure(event.error)
    return time.perf_counter() - began
