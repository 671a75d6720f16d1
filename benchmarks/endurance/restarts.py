"""Rolling restarts under load: one of two replicas at a time is asked to stop, and started anew."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

from app.cli.bench.load import Budget, Load
from app.cli.bench.outcomes import Run
from app.cli.bench.wire import Wire
from benchmarks.endurance.proxy import Proxy
from benchmarks.endurance.replica import Replica
from benchmarks.endurance.site import CLIENTS, STARTERS, answered_s, failures, load_of, ms, redis_url
from benchmarks.running import running_service


def run(restarts: int) -> str:
    """The page's section."""
    with running_service() as running, tempfile.TemporaryDirectory(prefix="chorus-restarts-") as folder:
        settings = {"CHORUS_REDIS_URL": redis_url(running), "CHORUS_BLOB_DIR": str(running.data_dir / "blobs")}
        homes = [Path(folder) / name for name in "ab"]
        with ExitStack() as stack:
            replicas = []
            for home in homes:
                home.mkdir()
                replicas.append(stack.enter_context(closing(Replica(home, home / "replica.log", settings))))
                replicas[-1].start()
            return asyncio.run(_roll(replicas, restarts))


async def _roll(replicas: list[Replica], restarts: int) -> str:
    async with Proxy([one.port for one in replicas]) as proxy, Wire(f"http://127.0.0.1:{proxy.port}", None) as wire:
        load = Load(wire, load_of(*STARTERS))
        asking = asyncio.create_task(load.closed(CLIENTS, Budget(seconds=24 * 3600, requests=None)))
        exits: Counter[int] = Counter()
        for turn in range(restarts):
            one = replicas[turn % 2]
            exits[await asyncio.to_thread(one.stop)] += 1
            await asyncio.to_thread(one.start)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return section(load.run, exits, proxy.retried, restarts)


def section(run: Run, exits: Counter[int], retried: int, restarts: int) -> str:
    answered = answered_s(run)
    ended = ", ".join(f"{count} with status {code}" for code, count in sorted(exits.items()))
    return "\n".join(
        [
            "## Rolling restarts",
            "",
            f"{restarts} restarts, each of one of two replicas behind a proxy, under a closed loop of {CLIENTS} "
            f"clients on {len(STARTERS)} tasks. The proxy asks the other replica where one refuses or drains.",
            "",
            "| | measured | goal |",
            "|---|---|---|",
            f"| restarts | {ended} | {restarts} with 0 |",
            f"| answered | {len(answered)} | |",
            f"| failed | {failures(run)} | 0 |",
            f"| asked of the other replica | {retried} | |",
            f"| p50, p99 | {ms(answered, 0.5)}, {ms(answered, 0.99)} | |",
        ]
    )
