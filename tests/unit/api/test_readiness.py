"""Readiness believes a good run for a moment, and tells busy from broken."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from app.api import readiness
from app.api.drain import Drain
from app.api.faults import NotReady
from app.api.readiness import Readiness
from app.engine import EngineStats
from app.errors import Draining, EngineFailure, Overloaded


@dataclass
class Registry:
    known: bool = True


class Engine:
    def __init__(self, mishap: Exception | None = None, *, hangs: bool = False, moves: bool = False) -> None:
        self.mishap, self.hangs, self.moves = mishap, hangs, moves
        self.runs = self.steps = 0

    async def check_ready(self) -> None:
        self.runs += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.mishap is not None:
            raise self.mishap

    def stats(self) -> EngineStats:
        self.steps += self.moves
        return EngineStats(steps_decode=self.steps)


def check(engine: Engine, *, registry: Any = None, drain: Drain | None = None, times: int = 1) -> None:
    async def run() -> None:
        ready = Readiness(registry or Registry(), engine, drain or Drain(1))  # type: ignore[arg-type]
        await asyncio.gather(*(ready.check() for _ in range(times)))

    asyncio.run(run())


def test_good_run_is_believed_for_a_moment() -> None:
    engine = Engine()
    check(engine, times=50)
    assert engine.runs == 1


def test_failed_run_is_not_ready() -> None:
    with pytest.raises(NotReady):
        check(Engine(EngineFailure("x")))


def test_full_queue_is_busy_not_broken() -> None:
    check(Engine(Overloaded("full")))


def test_engine_that_does_not_move_is_broken_and_one_that_does_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "PATIENCE_S", 0.02)
    check(Engine(hangs=True, moves=True))
    with pytest.raises(NotReady, match="does not move"):
        check(Engine(hangs=True))


def test_replica_that_knows_nothing_or_stops_is_not_ready() -> None:
    with pytest.raises(NotReady):
        check(Engine(), registry=Registry(known=False))
    drain = Drain(1)
    drain.begin()
    with pytest.raises(Draining):
        check(Engine(), drain=drain)
