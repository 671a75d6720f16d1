"""Ten times more than can be answered: goodput, how quickly the rest is refused, memory, and how soon it is over."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from app.cli.bench.load import Budget, Load
from app.cli.bench.outcomes import Outcome, Run, percentile
from app.cli.bench.wire import Wire
from benchmarks.endurance.site import (
    answered_s,
    codes_of,
    load_of,
    ms,
    open_store,
    process_of,
    publish_text_task,
    resident_mib,
    told,
    until_answered,
)
from benchmarks.endurance.verdict import Found, Section, section
from benchmarks.running import running_service

CLIENTS, FACTOR = 48, 10
QUEUED_ROWS = 96
STREAMED = 0.25
LEAST_SENT, LEAST_GOODPUT, REFUSED_S, MOST_GROWTH, RECOVERY_S = 0.9, 0.9, 0.05, 0.05, 5.0
TASK, TOKENS = "overload", 512
"""Answers long enough that ten times as many requests leave the model its share of the cores."""


def run(seconds: float) -> Section:
    """The page's section."""
    with running_service(CHORUS_MAX_QUEUED_ROWS=str(QUEUED_ROWS), CHORUS_MAX_ROWS="32") as running:
        with open_store(running) as store:
            publish_text_task(running, store, TASK, tokens=TOKENS)
        until_answered(running.url, TASK)
        api = process_of(running, "serve")
        return asyncio.run(_measure(running.url, api, seconds))


async def _measure(url: str, api: int, seconds: float) -> Section:
    async with Wire(url, None) as wire:
        await Load(wire, load_of(TASK, streamed=STREAMED)).closed(
            CLIENTS, Budget(seconds=seconds / 4, requests=None)
        )  # warm
        peak = goodput(
            await Load(wire, load_of(TASK, streamed=STREAMED)).closed(CLIENTS, Budget(seconds=seconds, requests=None))
        )
        idle_s = (await _probe(wire)).seconds
        before = resident_mib(api)
        budget = Budget(seconds=seconds, requests=None)
        flood = await Load(wire, load_of(TASK, streamed=STREAMED, seed=1)).open(FACTOR * peak, budget, seed=1)
        ended = time.monotonic()
        after = resident_mib(api)
        recovered_s = await _recovery(wire, idle_s, ended)
    return verdict(peak, flood, before, after, recovered_s, seconds)


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


def verdict(peak: float, flood: Run, before: float, after: float, recovered_s: float, seconds: float) -> Section:
    refused = sorted(one.ended - one.began for one in flood.outcomes if one.codes == ("overloaded",))
    others = codes_of(flood) - Counter({"overloaded": len(refused)})
    sent = len(flood.outcomes) / seconds  # while they arrived; what still waits then is answered after
    share, slow_s, growth = goodput(flood) / peak, percentile(refused, 0.99) if refused else None, after / before - 1
    found = [
        Found("peak", f"{peak:.1f} requests/s"),
        Found(
            "sent under overload",
            f"{sent:.0f} requests/s, {sent / peak:.1f} ×",
            f"{FACTOR} ×",
            sent >= LEAST_SENT * FACTOR * peak,
        ),
        Found("goodput of the peak", f"{100 * share:.0f} %", f"≥ {LEAST_GOODPUT:.0%}", share >= LEAST_GOODPUT),
        Found(
            "refused with 429, p99",
            f"{len(refused)}, {ms(refused, 0.99)}",
            f"< {1000 * REFUSED_S:.0f} ms",
            slow_s is not None and slow_s < REFUSED_S,
        ),
        Found("other errors", told(others), "0", not others),
        Found(
            "memory of the API",
            f"{before:.0f} → {after:.0f} MiB ({100 * growth:+.1f} %)",
            f"flat: < {MOST_GROWTH:.0%} more",
            growth < MOST_GROWTH,
        ),
        Found("recovery", f"{recovered_s:.1f} s", f"< {RECOVERY_S:g} s", recovered_s < RECOVERY_S),
    ]
    return section(
        "Overload",
        f"A closed loop of {CLIENTS} clients, then arrivals at {FACTOR} times its rate, {seconds:.0f} s each; "
        f"{TOKENS} tokens an answer; {QUEUED_ROWS} rows may wait; {STREAMED:.0%} of the requests ask for a stream. The "
        "load generator shares the cores.",
        found,
    )
