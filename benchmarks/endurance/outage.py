"""Redis hangs under load, and a replica is started meanwhile: known tasks are answered on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from app.cli.bench.load import Budget, Load
from app.cli.bench.outcomes import Run, percentile
from app.cli.bench.wire import Wire
from benchmarks.endurance.site import load_of, process_of, redis_url
from benchmarks.running import Running, free_port, running_service, wait_until_ready

CLIENTS = 4
TASKS = ("sentiment", "topic", "subjectivity", "question-type")


def run(seconds: float) -> str:
    """The page's section."""
    with running_service() as running:
        server = process_of(running, "valkey")
        calm = asyncio.run(ask(running.url, min(15.0, seconds)))
        os.kill(server, signal.SIGSTOP)
        try:
            hung, started_s, newcomer = asyncio.run(_while_it_hangs(running, seconds))
        finally:
            os.kill(server, signal.SIGCONT)
        after = asyncio.run(ask(running.url, min(15.0, seconds)))
    return section(calm, hung, after, newcomer, started_s=started_s, seconds=seconds)


async def ask(url: str, seconds: float) -> Run:
    async with Wire(url, None) as wire:
        return await Load(wire, load_of(*TASKS)).closed(CLIENTS, Budget(seconds=seconds, requests=None))


async def _while_it_hangs(running: Running, seconds: float) -> tuple[Run, float, Run]:
    """The load on the replica that runs, how long another took to start, and the load on that one."""
    whole = asyncio.create_task(ask(running.url, seconds))
    port, began = free_port(), time.monotonic()
    environment = {
        "CHORUS_REDIS_URL": redis_url(running),
        "CHORUS_DATA_DIR": str(running.data_dir),
        "CHORUS_PORT": str(port),
    }
    with serving(environment, running.data_dir / "newcomer.log") as process:
        url = f"http://127.0.0.1:{port}"
        await asyncio.to_thread(wait_until_ready, url, process)
        started_s = time.monotonic() - began
        newcomer = await ask(url, max(1.0, seconds - started_s))
        return await whole, started_s, newcomer


@contextmanager
def serving(environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`chorus serve`, stopped at the end."""
    with log.open("w") as out:
        command = [sys.executable, "-m", "app", "serve"]
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=out, stderr=out)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60)


def section(calm: Run, hung: Run, after: Run, newcomer: Run, *, started_s: float, seconds: float) -> str:
    lines = [
        "## Redis hangs",
        "",
        f"Its process is stopped for {seconds:.0f} s under a closed loop of {CLIENTS} clients on {len(TASKS)} known "
        "tasks; a second replica is started meanwhile, on the same data folder.",
        "",
        "| | answered | failed | p99 |",
        "|---|---|---|---|",
        _row("before", calm),
        _row("while it hangs", hung),
        _row(f"the replica that was started meanwhile, ready after {started_s:.0f} s", newcomer),
        _row("after", after),
        "",
        "Goal: no failure.",
    ]
    return "\n".join(lines)


def _row(name: str, run: Run) -> str:
    codes = Counter(code for one in run.outcomes for code in one.codes if code is not None)
    failed = ", ".join(f"{count} {code}" for code, count in codes.most_common()) or "0"
    answered = sorted(one.seconds for one in run.outcomes if one.codes == (None,))
    p99 = f"{1000 * percentile(answered, 0.99):.0f} ms" if answered else "–"
    return f"| {name} | {len(answered)} | {failed} | {p99} |"
