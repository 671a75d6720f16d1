"""Ten times more than can be answered: goodput, how quickly the rest is refused, memory, and how soon it is over.

Three times over, each flood right behind a closed loop of its own: how fast the machine is changes within minutes.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from app.cli.bench.load import Budget, Load
from app.cli.bench.outcomes import Outcome, Run, percentile
from app.cli.bench.wire import Wire
from benchmarks.endurance.site import (
    answered_s,
    codes_of,
    load_of,
    open_store,
    process_of,
    publish_text_task,
    resident_mib,
    told,
    until_answered,
)
from benchmarks.endurance.verdict import Found, Section, section
from benchmarks.running import running_service

CLIENTS, FACTOR, FLOODS = 48, 10, 3
QUEUED_ROWS = 96
STREAMED = 0.25
LEAST_SENT, LEAST_GOODPUT, REFUSED_S, MOST_GROWTH, RECOVERY_S = 0.9, 0.9, 0.05, 0.05, 5.0
TASK, TOKENS = "overload", 768
"""Answers long enough that ten times as many requests leave the model its share of the cores."""


@dataclass(frozen=True)
class Flood:
    """One flood beside the closed loop before it. peak in requests/s; memory of the API in MiB before and after."""

    peak: float
    run: Run
    before: float
    after: float
    recovered_s: float

    @property
    def share(self) -> float:
        """Its goodput, as a share of the peak."""
        return goodput(self.run) / self.peak

    @cached_property
    def refused(self) -> list[float]:
        """Seconds that each refusal took, sorted."""
        return sorted(one.ended - one.began for one in self.run.outcomes if one.codes == ("overloaded",))

    @property
    def refused_s(self) -> float:
        """99 of 100 refusals took no longer; infinite if nothing was refused."""
        return percentile(self.refused, 0.99) if self.refused else float("inf")

    @property
    def others(self) -> Counter[str]:
        return codes_of(self.run) - Counter({"overloaded": len(self.refused)})


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
        await _closed(wire, seconds / 4)  # warm
        return verdict([await _flood(wire, api, seconds, seed) for seed in range(1, FLOODS + 1)], seconds)


async def _flood(wire: Wire, api: int, seconds: float, seed: int) -> Flood:
    peak = goodput(await _closed(wire, seconds))
    idle_s = (await _probe(wire)).seconds
    before = resident_mib(api)
    budget = Budget(seconds=seconds, requests=None)
    flood = await Load(wire, load_of(TASK, streamed=STREAMED, seed=seed)).open(FACTOR * peak, budget, seed=seed)
    ended = time.monotonic()
    after = resident_mib(api)
    return Flood(peak, flood, before, after, await _recovery(wire, idle_s, ended))


async def _closed(wire: Wire, seconds: float) -> Run:
    return await Load(wire, load_of(TASK, streamed=STREAMED)).closed(CLIENTS, Budget(seconds=seconds, requests=None))


async def _probe(wire: Wire) -> Outcome:
    run = await Load(wire, load_of(TASK, seed=FLOODS + 1)).closed(1, Budget(seconds=None, requests=1))
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


def verdict(floods: Sequence[Flood], seconds: float) -> Section:
    """Medians of what a moment of the machine changes; of errors the sum, of memory and recovery the worst."""
    sent = [len(flood.run.outcomes) / seconds / flood.peak for flood in floods]  # while they arrived
    shares, slow_s = [flood.share for flood in floods], [flood.refused_s for flood in floods]
    others = sum((flood.others for flood in floods), Counter())
    before, after = floods[0].before, max(flood.after for flood in floods)
    growth, recovered_s = after / before - 1, max(flood.recovered_s for flood in floods)
    found = [
        Found("peak", f"{_each([flood.peak for flood in floods])} requests/s"),
        Found("sent under overload", f"{_each(sent)} ×", f"{FACTOR} ×", min(sent) >= LEAST_SENT * FACTOR),
        Found(
            "goodput of the peak, median",
            f"{100 * statistics.median(shares):.0f} % ({_each([100 * share for share in shares])})",
            f"≥ {LEAST_GOODPUT:.0%}",
            statistics.median(shares) >= LEAST_GOODPUT,
        ),
        Found(
            "refused with 429, p99, median",
            f"{sum(len(flood.refused) for flood in floods)}, {1000 * statistics.median(slow_s):.0f} ms "
            f"({_each([1000 * one for one in slow_s])})",
            f"< {1000 * REFUSED_S:.0f} ms",
            statistics.median(slow_s) < REFUSED_S,
        ),
        Found("other errors", told(others), "0", not others),
        Found(
            "memory of the API",
            f"{before:.0f} → {after:.0f} MiB ({100 * growth:+.1f} %)",
            f"flat: < {MOST_GROWTH:.0%} more",
            growth < MOST_GROWTH,
        ),
        Found("recovery, the longest", f"{recovered_s:.1f} s", f"< {RECOVERY_S:g} s", recovered_s < RECOVERY_S),
    ]
    return section(
        "Overload",
        f"{len(floods)} times: a closed loop of {CLIENTS} clients, then arrivals at {FACTOR} times its rate, "
        f"{seconds:.0f} s each; {TOKENS} tokens an answer; {QUEUED_ROWS} rows may wait; {STREAMED:.0%} of the requests "
        "ask for a stream. The load generator shares the cores. Single floods in brackets.",
        found,
    )


def _each(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" if value < 20 else f"{value:.0f}" for value in values)
