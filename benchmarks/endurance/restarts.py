"""Rolling restarts under load: one of two replicas at a time is asked to stop, and started anew."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.cli.bench.load import Budget, Load
from app.cli.bench.outcomes import Run, percentile
from app.cli.bench.wire import Wire
from benchmarks.endurance.proxy import Proxy
from benchmarks.endurance.site import load_of, redis_url
from benchmarks.running import free_port, running_service, wait_until_ready

CLIENTS = 4
TASKS = ("sentiment", "topic", "subjectivity", "question-type")


def run(restarts: int) -> str:
    """The page's section."""
    with running_service() as running, tempfile.TemporaryDirectory(prefix="chorus-restarts-") as folder:
        settings = {"CHORUS_REDIS_URL": redis_url(running), "CHORUS_BLOB_DIR": str(running.data_dir / "blobs")}
        with replica(Path(folder) / "a", settings) as first, replica(Path(folder) / "b", settings) as second:
            return asyncio.run(_roll([first, second], restarts))


class Replica:
    """One API process that can be stopped as a cluster stops it, and started anew."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        folder.mkdir()
        self.port = free_port()
        self._log = (folder / "replica.log").open("w")
        self._settings = {**settings, "CHORUS_DATA_DIR": str(folder), "CHORUS_PORT": str(self.port)}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, **self._settings}
        command = [sys.executable, "-m", "app", "serve"]
        self._process = subprocess.Popen(command, env=environment, stdout=self._log, stderr=self._log)
        wait_until_ready(f"http://127.0.0.1:{self.port}", self._process)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=90)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._log.close()


@contextmanager
def replica(folder: Path, settings: dict[str, str]) -> Iterator[Replica]:
    one = Replica(folder, settings)
    try:
        one.start()
        yield one
    finally:
        one.close()


async def _roll(replicas: list[Replica], restarts: int) -> str:
    async with Proxy([one.port for one in replicas]) as proxy, Wire(f"http://127.0.0.1:{proxy.port}", None) as wire:
        load = Load(wire, load_of(*TASKS))
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
    codes = Counter(code for one in run.outcomes for code in one.codes if code is not None)
    failed = ", ".join(f"{count} {code}" for code, count in codes.most_common()) or "0"
    answered = sorted(one.seconds for one in run.outcomes if one.codes == (None,))
    ended = ", ".join(f"{count} with status {code}" for code, count in sorted(exits.items()))
    return "\n".join(
        [
            "## Rolling restarts",
            "",
            f"{restarts} restarts, each of one of two replicas behind a proxy, under a closed loop of {CLIENTS} "
            f"clients on {len(TASKS)} tasks. The proxy asks the other replica where one refuses or drains.",
            "",
            "| | measured | goal |",
            "|---|---|---|",
            f"| restarts | {ended} | {restarts} with 0 |",
            f"| answered | {len(answered)} | |",
            f"| failed | {failed} | 0 |",
            f"| asked of the other replica | {retried} | |",
            f"| p50, p99 | {_ms(answered, 0.5)}, {_ms(answered, 0.99)} | |",
        ]
    )


def _ms(values: list[float], share: float) -> str:
    return f"{1000 * percentile(values, share):.0f} ms" if values else "–"
