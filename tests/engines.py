"""What the engine's tests share: small engines, requests, and running them to the end."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from app.backbone import Backbone, LoadedPrompt, Row, encode_row
from app.engine import Engine, EngineConfig, EngineService, Event, Request, RowRequest, Sampling


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_engine(llama: Backbone, clock: Any = None, **options: Any) -> Engine:
    return Engine(llama, EngineConfig(**{"max_rows": 4, "max_context": 96, **options}), clock=clock or Clock())


def generate(name: str, *ids: int, max_tokens: int = 5, deadline: float = 1e9, task: str = "") -> Request:
    row = Row(tuple(ids) or (5, 6, 7))
    return Request.single(name, row, None, deadline, Sampling(max_tokens=max_tokens), flow=("", task))


def row_of(backbone: Backbone, prompt: LoadedPrompt, text: str, sampling: Sampling | None = None) -> RowRequest:
    row = encode_row(backbone.tokenizer, prompt.template, prompt.bos, {"text": text})
    digest = prompt.digest if prompt.vectors is not None else None
    return RowRequest(row, digest, sampling, None if sampling else prompt.verbalizer)


def run(engine: Engine) -> dict[str, list[Event]]:
    """Every event of each request, rows mixed, until the engine rests."""
    events: dict[str, list[Event]] = defaultdict(list)
    for _ in range(1_000):
        for event in engine.step():
            events[event.request_id].append(event)
        engine.check_integrity()
        if engine.idle:
            return events
    raise AssertionError("the engine did not come to rest")


def tokens_of(events: Sequence[Event], row: int = 0) -> list[int]:
    return [event.token for event in events if event.token is not None and event.row == row]


def ends(events: dict[str, list[Event]]) -> dict[str, str]:
    """How each request of one row ended, and that it did so once."""
    for of in events.values():
        assert [event.finish is not None for event in of] == [False] * (len(of) - 1) + [True]
    return {name: str(of[-1].finish) for name, of in events.items()}


@asynccontextmanager
async def serving(llama: Backbone, **options: Any) -> AsyncIterator[EngineService]:
    service = EngineService(llama, EngineConfig(**{"max_rows": 8, "max_context": 160, "threads": 1, **options}))
    await service.start()
    try:
        yield service
    finally:
        await service.stop(0)


async def until_running(service: EngineService, rows: int) -> None:
    for _ in range(10_000):
        if service.stats().running == rows:
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"{rows} rows never ran at once")
