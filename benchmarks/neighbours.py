"""What a busy neighbour on the machine costs: a server whose team of threads shrinks, beside one whose team does not.

    python -m benchmarks.neighbours [--neighbours 0 1 2] [--rounds 5] [--seconds 4] [--write docs/results/neighbours.md]

Both serve the bundled model on all cores and get the same load in turns; a neighbour is a process that computes without
end. `--fixed` is the other server: `chorus serve` as it is, but that no wait for a core is too long for it.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from app.cli import main as chorus
from app.cli.bench.load import Budget, Load
from app.cli.bench.outcomes import Run
from app.cli.bench.wire import Wire
from app.engine import crew
from benchmarks.endurance.replica import SERVE, replicas
from benchmarks.endurance.site import (
    CLIENTS,
    STARTERS,
    TOKENS,
    answered_s,
    codes_of,
    load_of,
    ms,
    open_store,
    publish_text_task,
    until_answered,
)
from benchmarks.engine.pairs import spread
from benchmarks.running import running_service
from benchmarks.statistics import conditions

TEXTS = ("neighbours-a", "neighbours-b")
LOADS = {"labels": STARTERS, f"{TOKENS} new tokens": TEXTS}
FIXED, SHRINKING = range(2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbours", description=__doc__)
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--fixed", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.fixed:
        crew.CROWDED = float("inf")
        sys.exit(chorus(["serve"]))
    page = report(measured(given.neighbours, given.rounds, given.seconds), given.rounds, given.seconds)
    print(page)
    if given.write:
        given.write.write_text(page, encoding="utf-8")


Measured = dict[tuple[int, str], list[tuple[Run, Run]]]
"""By number of neighbours and kind of load: each round's two runs, of the fixed team and of the shrinking one."""


def measured(neighbours: Sequence[int], rounds: int, seconds: float) -> Measured:
    """All loads, both sides in turns. Exits when a request failed."""
    found: Measured = {(number, kind): [] for number in neighbours for kind in LOADS}
    with _replicas() as urls:
        for number, kind in found:
            for turn in range(rounds):
                order = (FIXED, SHRINKING) if turn % 2 else (SHRINKING, FIXED)
                with _busy(number):
                    runs = {side: asyncio.run(_load(urls[side], LOADS[kind], seconds)) for side in order}
                for run in runs.values():
                    if failed := codes_of(run):
                        raise SystemExit(f"{number} neighbours, {kind}: failed: {dict(failed)}")
                found[number, kind].append((runs[FIXED], runs[SHRINKING]))
    return found


async def _load(url: str, tasks: Sequence[str], seconds: float) -> Run:
    async with Wire(url, None) as wire:
        return await Load(wire, load_of(*tasks)).closed(CLIENTS, Budget(seconds=seconds, requests=None))


@contextmanager
def _replicas() -> Iterator[list[str]]:
    """Addresses of the two servers, the fixed one first."""
    with running_service() as running, open_store(running) as store:
        for name in TEXTS:
            publish_text_task(running, store, name, tokens=TOKENS)
        with replicas(running, (("-m", "benchmarks.neighbours", "--fixed"), SERVE)) as both:
            for one in both:
                for name in (*STARTERS, *TEXTS):
                    until_answered(one.url, name)
            yield [one.url for one in both]


@contextmanager
def _busy(number: int) -> Iterator[None]:
    processes = [multiprocessing.Process(target=_compute, daemon=True) for _ in range(number)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _compute() -> None:
    while True:
        pass


def rate(run: Run) -> float:
    """Answers a second."""
    return len(run.outcomes) / run.elapsed_s


def report(found: Measured, rounds: int, seconds: float) -> str:
    """The page."""
    lines = [
        "# Neighbours on the machine",
        "",
        f"`python -m benchmarks.neighbours`. A closed loop of {CLIENTS} clients on the bundled model, on "
        f"{os.cpu_count()} cores; a neighbour is a process that computes without end. Both servers have a thread for "
        "each core; one keeps them, the other computes with fewer while its threads have to wait for cores, as Chorus "
        f"does. {rounds} rounds in turns, {seconds:g} s each and until all is answered; the neighbours begin with the "
        "load. Medians; the ratio is the median of each round's, in brackets their range.",
        "",
        "| neighbours | work | fixed team | p99 | shrinking team | p99 | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for (number, kind), runs in found.items():
        sides = [[run[side] for run in runs] for side in (FIXED, SHRINKING)]
        cells = [f"{median(map(rate, side)):.1f} /s | {_slowest(side)}" for side in sides]
        ratios = [rate(shrinking) / rate(fixed) for fixed, shrinking in runs]
        lines.append(f"| {number} | {kind} | {cells[0]} | {cells[1]} | **{spread(ratios)}** |")
    return "\n".join([*lines, "", conditions() + ".", ""])


def _slowest(runs: Sequence[Run]) -> str:
    """The 99th percentile over all rounds."""
    return ms(sorted(seconds for run in runs for seconds in answered_s(run)), 0.99)


if __name__ == "__main__":
    main()
