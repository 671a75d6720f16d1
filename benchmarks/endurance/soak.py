"""Churn: versions published, aliases moved back and forth, tasks deleted, under load, while memory is watched."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from app.cli.bench.load import Budget, Load
from app.cli.bench.outcomes import Run
from app.cli.bench.wire import Wire
from benchmarks.endurance.site import (
    CLIENTS,
    answered_s,
    descriptors,
    load_of,
    open_store,
    process_of,
    publish_text_task,
    resident_mib,
    until_answered,
)
from benchmarks.running import Running, running_service
from prompt_store import PromptStore

TASKS = 6
SAMPLE_S = 5.0
EXPECTED = ("task_not_found", "alias_not_found", "version_not_found", "overloaded")


class Sample(NamedTuple):
    """`at` in seconds from the start; memory of the API in MiB."""

    at: float
    resident: float
    descriptors: int


def run(seconds: float) -> str:
    """The page's section."""
    with running_service(CHORUS_PROMPT_CACHE_MB="8") as running, open_store(running) as store:
        for number in range(TASKS):
            publish_text_task(running, store, f"soak-{number}")
            until_answered(running.url, f"soak-{number}")
        load, samples, changes = asyncio.run(_churn(running, store, seconds))
    return section(load, samples, changes, seconds)


async def _churn(running: Running, store: PromptStore, seconds: float) -> tuple[Run, list[Sample], int]:
    names = [f"soak-{number}" for number in range(TASKS)]
    api, began = process_of(running, "serve"), time.monotonic()
    async with Wire(running.url, None) as wire:
        asking = asyncio.create_task(
            Load(wire, load_of(*names)).closed(CLIENTS, Budget(seconds=seconds, requests=None))
        )
        changing = asyncio.create_task(asyncio.to_thread(_change, running, store, began + seconds))
        samples = []
        while time.monotonic() - began < seconds:
            await asyncio.sleep(SAMPLE_S)
            samples.append(Sample(time.monotonic() - began, resident_mib(api), descriptors(api)))
        return await asking, samples, await changing


def _change(running: Running, store: PromptStore, until: float) -> int:
    """Publish, roll back, delete and create anew, a few times a second; how often."""
    dice, done = random.Random(20), 0
    while time.monotonic() < until:
        name = f"soak-{dice.randrange(TASKS)}"
        if dice.random() < 0.1:
            store.delete_task(name)
        publish_text_task(running, store, name, seed=done)
        versions, _ = store.list_versions(name)
        if len(versions) > 1 and dice.random() < 0.5:
            store.move_alias(name, "prod", dice.choice(versions).number, expected=None)
        done += 1
        time.sleep(0.2)
    return done


def slope_share(samples: Sequence[Sample]) -> float:
    """Growth of resident memory over the second half of the time, by least squares, as a share of its mean."""
    half = samples[len(samples) // 2 :]
    if len(half) < 2:
        return 0.0
    slope, _ = statistics.linear_regression([one.at for one in half], [one.resident for one in half])
    return slope * (half[-1].at - half[0].at) / statistics.mean(one.resident for one in half)


def section(load: Run, samples: Sequence[Sample], changes: int, seconds: float) -> str:
    codes = [code for one in load.outcomes for code in one.codes if code is not None]
    odd = [code for code in codes if code not in EXPECTED]
    first, last = samples[len(samples) // 2], samples[-1]
    return "\n".join(
        [
            "## Churn of prompts",
            "",
            f"{seconds / 60:.0f} minutes: a closed loop of {CLIENTS} clients on {TASKS} tasks, whose versions are "
            f"published, rolled back and deleted meanwhile ({changes} changes); prompt keys and values have 8 MiB.",
            "",
            "| | measured | goal |",
            "|---|---|---|",
            f"| answered | {len(answered_s(load))} | |",
            f"| refused: its task was just deleted, or the queue was full | {len(codes) - len(odd)} | |",
            f"| other errors | {len(odd)} {sorted(set(odd)) or ''} | 0 |",
            f"| memory of the API, half way → end | {first.resident:.0f} → {last.resident:.0f} MiB | |",
            f"| its slope over the second half | {100 * slope_share(samples):.1f} % | < 2 % |",
            f"| descriptors, half way → end | {first.descriptors} → {last.descriptors} | flat |",
        ]
    )
