"""Redis hangs under load, and a replica is started meanwhile: known tasks are answered on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import closing

from app.cli.bench.load import Budget, Load
from app.cli.bench.outcomes import Run
from app.cli.bench.wire import Wire
from benchmarks.endurance.replica import Replica
from benchmarks.endurance.site import CLIENTS, STARTERS, answered_s, codes_of, load_of, ms, process_of, redis_url, told
from benchmarks.endurance.verdict import Found, Section, section
from benchmarks.running import Running, running_service

STREAMED = 0.5


def run(seconds: float) -> Section:
    """The page's section."""
    with running_service() as running:
        server = process_of(running, "valkey-server")
        address = redis_url(running)  # while there is somebody to ask for it
        calm = asyncio.run(ask(running.url, min(15.0, seconds)))
        os.kill(server, signal.SIGSTOP)
        try:
            hung, started_s, newcomer = asyncio.run(_while_it_hangs(running, address, seconds))
        finally:
            os.kill(server, signal.SIGCONT)
        after = asyncio.run(ask(running.url, min(15.0, seconds)))
    return verdict(calm, hung, after, newcomer, started_s=started_s, seconds=seconds)


async def ask(url: str, seconds: float) -> Run:
    async with Wire(url, None) as wire:
        return await Load(wire, load_of(*STARTERS, streamed=STREAMED)).closed(
            CLIENTS, Budget(seconds=seconds, requests=None)
        )


async def _while_it_hangs(running: Running, address: str, seconds: float) -> tuple[Run, float, Run]:
    """The load on the replica that runs, how long another took to start, and the load on that one."""
    whole = asyncio.create_task(ask(running.url, seconds))
    settings = {"CHORUS_REDIS_URL": address}
    with closing(Replica(running.data_dir, running.data_dir / "newcomer.log", settings)) as replica:
        began = time.monotonic()
        await asyncio.to_thread(replica.start)
        started_s = time.monotonic() - began
        newcomer = await ask(replica.url, max(1.0, seconds - started_s))
        return await whole, started_s, newcomer


def verdict(calm: Run, hung: Run, after: Run, newcomer: Run, *, started_s: float, seconds: float) -> Section:
    """Redis hung from the start of `hung` to its end; `newcomer` was answered by the replica started meanwhile."""
    found = [
        _row("before", calm),
        _row("while it hangs", hung),
        _row(f"the replica that was started meanwhile, ready after {started_s:.0f} s", newcomer),
        _row("after", after),
        Found("started while it hangs", f"after {started_s:.0f} s", f"< {seconds:.0f} s", started_s < seconds),
    ]
    return section(
        "Redis hangs",
        f"Its process is stopped for {seconds:.0f} s under a closed loop of {CLIENTS} clients on {len(STARTERS)} known "
        f"tasks, {STREAMED:.0%} of it streams; a second replica is started meanwhile, on the same data folder.",
        found,
    )


def _row(name: str, run: Run) -> Found:
    answered, codes = answered_s(run), codes_of(run)
    measured = f"{len(answered)} answered, p99 {ms(answered, 0.99)}; failed: {told(codes)}"
    return Found(name, measured, "no failure", bool(answered) and not codes)
