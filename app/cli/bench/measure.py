"""One measurement from warm-up to document: what `chorus bench` runs, and what benchmarks in this repository call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from app.cli.bench.load import Budget, Load
from app.cli.bench.outcomes import Outcome, Run, summarise
from app.cli.bench.service import read_sums, work_between
from app.cli.bench.wire import Wire
from app.cli.bench.workload import Workload
from app.concurrency import running_beside

TICK_S = 0.5


@dataclass(frozen=True)
class Plan:
    """How much is asked how fast: `clients` in a closed loop, or `rate` requests a second in an open one; for `seconds`
    or until `requests` were sent, whichever comes first; after `warm_up_s` that do not count."""

    clients: int = 8
    rate: float | None = None
    seconds: float | None = 10.0
    requests: int | None = None
    warm_up_s: float = 2.0
    seed: int = 0


@dataclass
class Progress:
    """What a live line shows."""

    phase: str = "warming up"
    began: float = 0.0
    requests: int = 0
    failed: int = 0

    def __str__(self) -> str:
        seconds = time.monotonic() - self.began
        rate = self.requests / seconds if seconds > 0 else 0.0
        failed = f", {self.failed:,} failed" if self.failed else ""
        return f"{self.phase} · {seconds:.0f} s · {self.requests:,} requests · {rate:.1f} a second{failed}"


async def measure(
    url: str, key: str | None, workload: Workload, plan: Plan, *, tell: Callable[[Progress], None] | None = None
) -> dict[str, Any]:
    """Run the plan and return its figures: the client's (`summarise`) and the service's (`work_between`). `tell` is
    called twice a second."""
    progress = Progress()
    telling = running_beside(_tell(progress, tell), "tell progress") if tell else nullcontext()
    async with Wire(url, key) as wire, telling:
        if plan.warm_up_s > 0:
            await _send(wire, workload, plan, Budget(seconds=plan.warm_up_s, requests=None), progress)
        progress.phase = "measuring"
        before = await read_sums(wire)
        run = await _send(wire, workload, plan, Budget(seconds=plan.seconds, requests=plan.requests), progress)
        after = await read_sums(wire)
    found, service = summarise(run), work_between(before, after)
    others = None if service is None else max(0, service["rows_answered"] - found["rows"]["answered"])
    return {**found, "service": service, "other_rows": others}


async def _send(wire: Wire, workload: Workload, plan: Plan, budget: Budget, progress: Progress) -> Run:
    def seen(outcome: Outcome) -> None:
        progress.requests += 1
        progress.failed += outcome.answered < len(outcome.codes)

    progress.began, progress.requests, progress.failed = time.monotonic(), 0, 0
    load = Load(wire, workload, seen=seen)
    if plan.rate is not None:
        return await load.open(plan.rate, budget, seed=plan.seed)
    return await load.closed(plan.clients, budget)


async def _tell(progress: Progress, tell: Callable[[Progress], None]) -> None:
    while True:
        tell(progress)
        await asyncio.sleep(TICK_S)
