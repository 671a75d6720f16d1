"""Rolling restarts under load: one of two replicas at a time is asked to stop, and started anew."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from app.cli.bench.load import Budget, Load
from app.cli.bench.outcomes import Run
from app.cli.bench.wire import Wire
from benchmarks.endurance.proxy import Proxy
from benchmarks.endurance.replica import SERVE, Replica, replicas
from benchmarks.endurance.site import (
    CLIENTS,
    STARTERS,
    answered_s,
    codes_of,
    load_of,
    ms,
    open_store,
    publish_text_task,
    told,
    until_answered,
)
from benchmarks.endurance.verdict import Found, Section, section
from benchmarks.running import running_service

STREAMED = 0.5
TEXTS, TOKENS = ("endurance-a", "endurance-b"), 64
LONG_TEXTS, LONG_TOKENS = ("endurance-long-a", "endurance-long-b"), 384
SHORT_S = 0.0
CUT, DRAIN = "cut_off", "drain"


class Rolled(NamedTuple):
    """`exits` counts status codes; `streams` are those among the answered."""

    run: Run
    exits: Counter[int]
    passed_over: Counter[str]
    failed: Counter[str]

    @property
    def streams(self) -> int:
        return sum(one.first is not None and one.codes == (None,) for one in self.run.outcomes)


def run(restarts: int) -> Section:
    """The page's section."""
    with running_service() as running, open_store(running) as store:
        for names, tokens in ((TEXTS, TOKENS), (LONG_TEXTS, LONG_TOKENS)):
            for name in names:
                publish_text_task(running, store, name, tokens=tokens)
        with replicas(running, (SERVE, SERVE)) as both:
            whole = asyncio.run(_roll(_answering(both), (*STARTERS, *TEXTS), restarts))
        with replicas(running, (SERVE, SERVE), CHORUS_DRAIN_S=str(SHORT_S)) as both:
            short = asyncio.run(_roll(_answering(both), LONG_TEXTS, max(4, restarts // 5)))
    return verdict(whole, short)


def _answering(both: list[Replica]) -> list[Replica]:
    """The replicas, as soon as they know all tasks."""
    for one in both:
        for name in (*TEXTS, *LONG_TEXTS):
            until_answered(one.url, name)
    return both


async def _roll(both: Sequence[Replica], tasks: Sequence[str], restarts: int) -> Rolled:
    async with Proxy([one.port for one in both]) as proxy, Wire(f"http://127.0.0.1:{proxy.port}", None) as wire:
        load = Load(wire, load_of(*tasks, streamed=STREAMED))
        asking = asyncio.create_task(load.closed(CLIENTS, Budget(seconds=24 * 3600, requests=None)))
        exits: Counter[int] = Counter()
        for turn in range(restarts):
            one = both[turn % 2]
            exits[await asyncio.to_thread(one.stop)] += 1
            await asyncio.to_thread(one.start)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return Rolled(load.run, exits, proxy.passed_over, proxy.failed)


def verdict(whole: Rolled, short: Rolled) -> Section:
    """`whole` had the time to finish what ran, `short` had not."""
    answered, lost, silent = answered_s(whole.run), codes_of(whole.run), codes_of(short.run)
    cut = Counter({kind: silent.pop(kind) for kind in (CUT, DRAIN) if kind in silent})
    unexplained = short.failed - Counter({f"503 {CUT}": short.failed[f"503 {CUT}"]})
    restarts = whole.exits.total()
    found = [
        Found("restarts", _exits(whole.exits), f"{restarts} with 0", whole.exits[0] == restarts),
        Found("answered, streams among them", f"{len(answered)}, {whole.streams}", "streams too", whole.streams > 0),
        Found("failed, as the clients saw it", told(lost), "0", not lost),
        Found("failed, as the proxy saw it", told(whole.failed), "0", not whole.failed),
        Found("asked of another connection", told(whole.passed_over)),
        Found("p50, p99", f"{ms(answered, 0.5)}, {ms(answered, 0.99)}"),
        Found(
            f"{short.exits.total()} restarts that leave {SHORT_S:g} s to what runs",
            _exits(short.exits),
            "all with 0",
            short.exits[0] == short.exits.total(),
        ),
        Found("cut off, and told so", f"{told(cut)} of {len(short.run.outcomes)}", "some", bool(cut)),
        Found("cut off without a word", told(silent | unexplained), "0", not silent and not unexplained),
    ]
    return section(
        "Rolling restarts",
        f"{restarts} restarts, each of one of two replicas behind a proxy, under a closed loop of {CLIENTS} clients on "
        f"{len(STARTERS)} tasks with labels and {len(TEXTS)} that write {TOKENS} tokens; {STREAMED:.0%} of the "
        "requests ask for a stream. The proxy asks again only where nothing can have been done: nobody took the "
        "connection, a kept connection had ended before a byte was sent, or the replica said with 503, `Retry-After` "
        "and `draining` or `not_ready` that it did not take the request. Then restarts that leave no time to what "
        f"runs, up to {LONG_TOKENS} tokens: that is cut off, and has to be told (503 `{CUT}` where nothing was written "
        f"yet, else what was written, with `finish_reason: {DRAIN}`, in an answer or a stream's last event).",
        found,
    )


def _exits(exits: Counter[int]) -> str:
    return ", ".join(f"{count} with status {code}" for code, count in sorted(exits.items()))
