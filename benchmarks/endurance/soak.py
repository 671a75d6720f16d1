"""Churn: versions published, aliases moved back and forth, tasks deleted, under load that in part leaves early, while
what the process holds is watched."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import httpx

from app.cli.bench.load import Budget, Load
from app.cli.bench.outcomes import Run
from app.cli.bench.wire import Wire
from benchmarks.endurance.leavers import MID_ANSWER, MID_REQUEST, MID_STREAM, Leavers
from benchmarks.endurance.site import (
    CLIENTS,
    answered_s,
    codes_of,
    descriptors,
    load_of,
    open_store,
    process_of,
    publish_text_task,
    resident_mib,
    threads,
    told,
    until_answered,
)
from benchmarks.endurance.trend import Trend, trend
from benchmarks.endurance.verdict import Found, Section, section
from benchmarks.running import Running, running_service
from prompt_store import PromptStore

TASKS = 6
LEAVERS, STREAMED, TOKENS = 2, 0.5, 48
SAMPLE_S = 5.0
WARM_S = 300.0
WARM_SHARE = 1 / 6
MOST_GROWTH = 0.02
FLAT = 0.05
REST_S = 60.0
EXPECTED = ("task_not_found", "alias_not_found", "version_not_found", "overloaded")


class Sample(NamedTuple):
    """`at` in seconds from the start; memory of the API in MiB; `tasks` are asyncio's."""

    at: float
    resident: float
    descriptors: int
    tasks: int
    threads: int


class Churned(NamedTuple):
    """`before` and `after` the load, at rest."""

    load: Run
    samples: list[Sample]
    changes: int
    left: Counter[str]
    before: Sample
    after: Sample


def run(seconds: float) -> Section:
    """The page's section."""
    with running_service(CHORUS_PROMPT_CACHE_MB="8") as running, open_store(running) as store:
        for number in range(TASKS):
            publish_text_task(running, store, f"soak-{number}", tokens=TOKENS)
            until_answered(running.url, f"soak-{number}")
        churned = asyncio.run(_churn(running, store, seconds))
    return verdict(churned, seconds)


async def _churn(running: Running, store: PromptStore, seconds: float) -> Churned:
    names = [f"soak-{number}" for number in range(TASKS)]
    began, watch = time.monotonic(), _Watch(running)
    before = await watch.at_rest()
    async with Wire(running.url, None) as wire:
        load = Load(wire, load_of(*names, streamed=STREAMED))
        asking = asyncio.create_task(load.closed(CLIENTS, Budget(seconds=seconds, requests=None)))
        leavers = Leavers(running.url, load_of(*names, streamed=STREAMED, seed=1))
        leaving = asyncio.create_task(leavers.run(LEAVERS, seconds))
        changing = asyncio.create_task(asyncio.to_thread(_change, running, store, began + seconds))
        samples = []
        while time.monotonic() - began < seconds:
            await asyncio.sleep(SAMPLE_S)
            samples.append(await watch.sample())
        await asking
        changes, left = await changing, await leaving
    return Churned(load.run, samples, changes, left, before, await watch.at_rest())


class _Watch:
    """Looks at the API from outside, and at its own word on its tasks."""

    def __init__(self, running: Running) -> None:
        self._url, self._api = running.url, process_of(running, "serve")
        self._began = time.monotonic()

    async def sample(self) -> Sample:
        at, api = time.monotonic() - self._began, self._api
        tasks = await asyncio.to_thread(self._reading, "asyncio_tasks")
        return Sample(at, resident_mib(api), descriptors(api), tasks, threads(api))

    async def at_rest(self) -> Sample:
        """The first of two samples a second apart with the same tasks and nothing being answered; the last that there
        is after `REST_S`."""
        deadline = time.monotonic() + REST_S
        last = await self.sample()
        while time.monotonic() < deadline:
            await asyncio.sleep(1)
            previous, last = last, await self.sample()
            if previous.tasks == last.tasks and await asyncio.to_thread(self._reading, "num_requests_running") == 0:
                break
        return last

    def _reading(self, name: str) -> int:
        text = httpx.get(f"{self._url}/metrics", timeout=60, headers={"connection": "close"}).text
        found = re.search(rf"^chorus_{name} (\S+)$", text, re.MULTILINE)
        assert found is not None, f"the service has no metric {name}"
        return int(float(found[1]))


def _change(running: Running, store: PromptStore, until: float) -> int:
    """Publish, roll back, delete and create anew, a few times a second; how often."""
    dice, done = random.Random(20), 0
    while time.monotonic() < until:
        name = f"soak-{dice.randrange(TASKS)}"
        if dice.random() < 0.1:
            store.delete_task(name)
        publish_text_task(running, store, name, seed=done, tokens=TOKENS)
        versions, _ = store.list_versions(name)
        if len(versions) > 1 and dice.random() < 0.5:
            store.move_alias(name, "prod", dice.choice(versions).number, expected=None)
        done += 1
        time.sleep(0.2)
    return done


def warm_s(seconds: float) -> float:
    """What is left out of the slopes: the first minutes, while pools and caches fill; less of a short run."""
    return min(WARM_S, WARM_SHARE * seconds)


def verdict(churned: Churned, seconds: float) -> Section:
    codes = codes_of(churned.load)
    odd = Counter({code: count for code, count in codes.items() if code not in EXPECTED})
    warm = warm_s(seconds)
    window = [one for one in churned.samples if one.at >= warm]
    memory = trend([one.at for one in window], [one.resident for one in window])
    found = [
        Found("answered", str(len(answered_s(churned.load)))),
        Found("refused: its task was just deleted, or the queue was full", str(codes.total() - odd.total())),
        Found("other errors", told(odd), "0", not odd),
        Found(
            "clients that left",
            told(churned.left),
            "each way",
            all(churned.left[way] for way in (MID_STREAM, MID_ANSWER, MID_REQUEST)),
        ),
        Found("memory of the API", _moved(memory, " MiB")),
        Found("its slope", f"{100 * memory.share:+.1f} %", "< 2 %", memory.share < MOST_GROWTH),
        *(_flat(name, window) for name in ("descriptors", "tasks", "threads")),
        Found("descriptors at rest, before → after", f"{churned.before.descriptors} → {churned.after.descriptors}"),
        Found(
            "asyncio tasks at rest, before → after",
            f"{churned.before.tasks} → {churned.after.tasks}",
            "no more",
            churned.after.tasks <= churned.before.tasks,
        ),
    ]
    return section(
        "Churn of prompts",
        f"{seconds / 60:.1f} minutes: a closed loop of {CLIENTS} clients on {TASKS} tasks, whose versions are "
        f"published, rolled back and deleted meanwhile ({churned.changes} changes), {STREAMED:.0%} of it streams, and "
        f"{LEAVERS} clients that leave early; prompt keys and values have 8 MiB. Slopes are least squares over all "
        f"samples ({SAMPLE_S:g} s apart) but those of the first {warm:.0f} s, in which pools and caches fill; given is "
        f"the growth over that window. Flat is a growth of at most {FLAT:.0%} or 2.",
        found,
    )


def _flat(name: str, window: Sequence[Sample]) -> Found:
    values = [float(getattr(one, name)) for one in window]
    found = trend([one.at for one in window], values)
    flat = found.growth <= max(2.0, FLAT * found.mean)
    return Found({"tasks": "asyncio tasks"}.get(name, name), f"{_moved(found)} ({found.growth:+.1f})", "flat", flat)


def _moved(found: Trend, unit: str = "") -> str:
    return f"{found.first:.0f} → {found.last:.0f}{unit}"
