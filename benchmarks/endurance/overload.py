"""Ten times more than can be answered: goodput, how quickly the rest is refused, memory, and how soon it is over."""

from __future__ import annotations

import asyncio
import time

from app.cli.bench.load import Budget, Load
from app.cli.bench.outcomes import Outcome, Run
from app.cli.bench.wire import Wire
from benchmarks.endurance.site import (
    answered_s,
    load_of,
    ms,
    open_store,
    process_of,
    publish_text_task,
    resident_mib,
    until_answered,
)
from benchmarks.running import running_service

CLIENTS, FACTOR = 48, 10
QUEUED_ROWS = 96
TASK = "overload"


def run(seconds: float) -> str:
    """The page's section."""
    with running_service(CHORUS_MAX_QUEUED_ROWS=str(QUEUED_ROWS), CHORUS_MAX_ROWS="32") as running:
        with open_store(running) as store:
            publish_text_task(running, store, TASK)
        until_answered(running.url, TASK)
        api = process_of(running, "serve")
        return asyncio.run(_measure(running.url, api, seconds))


async def _measure(url: str, api: int, seconds: float) -> str:
    async with Wire(url, None) as wire:
        await Load(wire, load_of(TASK)).closed(CLIENTS, Budget(seconds=seconds / 4, requests=None))  # warm
        peak = goodput(await Load(wire, load_of(TASK)).closed(CLIENTS, Budget(seconds=seconds, requests=None)))
        idle_s = (await _probe(wire)).seconds
        before = resident_mib(api)
        budget = Budget(seconds=seconds, requests=None)
        flood = await Load(wire, load_of(TASK, seed=1)).open(FACTOR * peak, budget, seed=1)
        ended = time.monotonic()
        after = resident_mib(api)
        recovered_s = await _recovery(wire, idle_s, ended)
    return section(peak, flood, before, after, recovered_s, seconds)


async def _probe(wire: Wire) -> Outcome:
    run = await Load(wire, load_of(TASK, seed=2)).closed(1, Budget(seconds=None, requests=1))
    return run.outcomes[0]


async def _recovery(wire: Wire, idle_s: float, ended: float) -> float:
    """Seconds from the flood's end until one request alone takes no more than twice what it took before."""
    while time.monotonic() - ended < 60:
        outcome = await _probe(wire)
        if outcome.codes == (None,) and outcome.seconds <= 2 * idle_s:
            break
    return time.monotonic() - ended


def goodput(run: Run) -> float:
    """Answered requests a second."""
    return len(answered_s(run)) / run.elapsed_s


def section(peak: float, flood: Run, before: float, after: float, recovered_s: float, seconds: float) -> str:
    refused = sorted(one.ended - one.began for one in flood.outcomes if one.codes == ("overloaded",))
    others = sum(one.codes not in ((None,), ("overloaded",)) for one in flood.outcomes)
    sent = len(flood.outcomes) / flood.elapsed_s
    share = goodput(flood) / peak
    return "\n".join(
        [
            "## Overload",
            "",
            f"A closed loop of {CLIENTS} clients, then arrivals at {FACTOR} times its rate, {seconds:.0f} s each; "
            f"{QUEUED_ROWS} rows may wait. The load generator shares the cores.",
            "",
            "| | measured | goal |",
            "|---|---|---|",
            f"| peak | {peak:.1f} requests/s | |",
            f"| sent under overload | {sent:.0f} requests/s, {sent / peak:.1f} × | 10 × |",
            f"| goodput of the peak | {100 * share:.0f} % | ≥ 90 % |",
            f"| refused with 429, p99 | {len(refused)}, {ms(refused, 0.99)} | < 50 ms |",
            f"| other errors | {others} | 0 |",
            f"| memory of the API | {before:.0f} → {after:.0f} MiB | flat |",
            f"| recovery | {recovered_s:.1f} s | < 5 s |",
        ]
    )
