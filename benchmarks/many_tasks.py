"""Ten thousand tasks, room for five hundred: what a device budget that is twenty times too small costs.

    python -m benchmarks.many_tasks [labels] [generate] [registry] [--model tiny] [--rounds 5] [--write docs/results]

Tasks of P = 20 vectors on a shape of engine/models.py with random weights are asked for by Zipf's law (s = 1). One
engine has a budget for the keys and values of 500 prompts, the other for all, or where memory does not hold all for as
many as it holds; both get the same requests in interleaved rounds, the vectors handed along with each request as the
service does. `registry` is `registering.py`. What was measured stays in a JSON file beside the page, so that one part
can be run anew alone. A smoke run: `labels --rounds 1 --requests 32 --warming 50`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from app.backbone import Backbone
from app.backbone.backbone import make_tokenizer, wrap_model
from app.backbone.rows import Row
from app.backbone.verbalizer import Verbalizer
from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.types import Request, Sampling
from benchmarks import registering
from benchmarks.engine.models import SHAPES, Shape, make_model, save_tokenizer
from benchmarks.engine.pairs import Pair, in_pairs, spread
from benchmarks.engine.workload import Task, Workload, label_ids, make_tasks
from benchmarks.statistics import conditions

TASKS, FITTING, P = 10_000, 500, 20
GOAL = 0.7
RESERVE = 4 << 30  # bytes of memory that prompts leave to all else
KINDS = {"labels": "4 labels scored", "generate": "16 new tokens, greedy"}
_NEVER = 1e12  # a deadline
_ATTEMPTS = 3  # of one round at most


@dataclass(frozen=True)
class Size:
    """How much is asked: `requests` a round by kind, `warming` prompts touched beforehand."""

    requests: dict[str, int]
    warming: int = 3000
    rounds: int = 5


SIZES = {"tiny": Size({"labels": 400, "generate": 200}), "0.5b": Size({"labels": 256, "generate": 128})}


def prompt_bytes(shape: Shape) -> int:
    """Of one prompt's keys and values."""
    return P * shape.kv_bytes_per_token


def room_for(shape: Shape, available: int) -> int:
    """Prompts of all that fit into `available` bytes of memory."""
    return min(TASKS, max(FITTING, (available - RESERVE) // prompt_bytes(shape)))


class Traffic:
    """Requests by Zipf's law over shuffled tasks; no text comes twice."""

    def __init__(self, kind: str, shape: Shape) -> None:
        self.shape = shape
        self.work = Workload(kind="labels" if kind == "labels" else "generate", tasks=TASKS, prompt=(P, P))
        self.tasks: list[Task] = make_tasks(self.work, hidden=shape.hidden, vocabulary=shape.vocabulary)
        self.digests = [task.digest for task in self.tasks]
        self._shares = 1 / np.random.default_rng(7).permutation(np.arange(1, TASKS + 1))
        self._shares /= self._shares.sum()
        self._words = self._verbalizer()
        self._sent = 0

    def requests(self, turn: int, count: int) -> list[tuple[Request, int]]:
        """(request, task) in the order of arrival."""
        dice = np.random.default_rng([self.work.seed, 3, turn])
        chosen = dice.choice(TASKS, size=count, p=self._shares)
        return [self._request(int(task), int(dice.integers(24, 49)), self.work.kind, dice) for task in chosen]

    def touches(self, tasks: Sequence[int]) -> list[tuple[Request, int]]:
        """The cheapest request of each task: it makes a prompt resident, or wanted once more."""
        dice = np.random.default_rng([self.work.seed, 4])
        return [self._request(task, 1, "labels", dice) for task in tasks]

    def drawn(self, turn: int, count: int) -> list[int]:
        dice = np.random.default_rng([self.work.seed, 5, turn])
        return [int(task) for task in dice.choice(TASKS, size=count, p=self._shares)]

    def _request(self, task: int, length: int, kind: str, dice: np.random.Generator) -> tuple[Request, int]:
        text = dice.integers(0, self.shape.vocabulary // 2, length).tolist()
        row = Row((*(-1 - j for j in range(P)), *text), P)
        how = {"verbalizer": self._words} if kind == "labels" else {"sampling": Sampling(max_tokens=16)}
        self._sent += 1
        return Request.single(str(self._sent), row, self.digests[task], _NEVER, flow=("", str(task)), **how), task

    def reach(self, count: int) -> float:
        """Share of the requests that go to the `count` tasks asked for most: the best a cache of that size can do."""
        return float(np.sort(self._shares)[::-1][:count].sum())

    def _verbalizer(self) -> Verbalizer:
        ids = label_ids(self.work, self.shape.vocabulary)
        names = tuple(map(str, ids))
        return Verbalizer(names, tuple((name,) for name in names), tuple(((i,),) for i in ids), terminated=False)


class Seat:
    """One engine with its budget."""

    def __init__(self, backbone: Backbone, prompts: int, size: int) -> None:
        """`prompts` of `size` bytes each have room."""
        config = EngineConfig(max_rows=64, max_context=128, prompt_cache_bytes=prompts * size)
        self.engine = Engine(backbone, config)

    def run(self, traffic: Traffic, requests: Sequence[tuple[Request, int]]) -> float:
        """Seconds until all are answered."""
        began = time.perf_counter()
        for request, task in requests:
            self.engine.submit(request, {traffic.digests[task]: traffic.tasks[task].vectors})
        while not self.engine.idle:
            for event in self.engine.step():
                if event.finish not in (None, "length", "label"):
                    raise RuntimeError(f"a request ended as {event.finish}: {event.error}")
        return time.perf_counter() - began

    def reused(self) -> tuple[int, int]:
        stats = self.engine.stats()
        return stats.prefix_hits, stats.prefix_misses


def measure(kind: str, shape: Shape, size: Size) -> dict[str, Any]:
    """One row of the page: rounds of both engines on the same requests."""
    traffic, backbone, requests = Traffic(kind, shape), random_model(shape), size.requests[kind]
    room = room_for(shape, psutil.virtual_memory().available)
    small = Seat(backbone, FITTING, prompt_bytes(shape))
    large = Seat(backbone, room + 64 * (room == TASKS), prompt_bytes(shape))
    rounds = [traffic.requests(turn, requests) for turn in range(_ATTEMPTS * size.rounds)]
    asked = sorted({task for one in rounds for _, task in one})
    large.run(traffic, traffic.touches(asked))  # all that will be asked for is resident: to time, the same as all
    small.run(traffic, traffic.touches(traffic.drawn(0, size.warming)))  # it learns by the same law what is asked for
    for seat in (small, large):
        seat.run(traffic, traffic.requests(len(rounds), max(1, requests // 4)))
    before, turns = {seat: seat.reused() for seat in (small, large)}, count()

    def one_round() -> Pair:
        turn = next(turns)
        order = (small, large) if turn % 2 else (large, small)
        taken = {seat: seat.run(traffic, rounds[turn]) for seat in order}
        print(f"    run {turn + 1}: {taken[small]:.2f} s, all resident {taken[large]:.2f} s", flush=True)
        return requests / taken[large], requests / taken[small]

    found = in_pairs(one_round, size.rounds)
    hits, misses = (now - then for now, then in zip(small.reused(), before[small], strict=True))
    if room >= len(asked) and large.reused()[1] != before[large][1]:
        raise RuntimeError("prompts were missing where all should be resident")
    return {
        "conditions": conditions(),
        "runner": small.engine.runner.name,
        "requests": requests,
        "rates": found.kept,
        "disturbed": found.told("all resident", f"room for {FITTING}"),
        "reused": hits / (hits + misses),
        "reach": traffic.reach(FITTING),
        "prompt_bytes": prompt_bytes(shape),
        "room": room,
    }


def random_model(shape: Shape) -> Backbone:
    from transformers import AutoTokenizer

    model = make_model(shape)
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(shape.vocabulary, Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return wrap_model(model, make_tokenizer(tokenizer, model), name=shape.name, identity="0" * 64)


def render(parts: dict[str, Any]) -> str:
    """The page: a row for each part that was ever measured. Parts are named `model/kind`, and `registry`."""
    lines = [
        "# Ten thousand tasks",
        "",
        f"`python -m benchmarks.many_tasks`. {TASKS:,} tasks of P = {P}, asked for by Zipf's law (s = 1), 24–48 fresh",
        "text tokens, the engine driven directly; `tiny` and `0.5b` as in [engine.md](engine.md). One engine has",
        f"room for keys and values of {FITTING} prompts, the other for all; medians of interleaved rounds, the ratio",
        f"being the median of each round's, in brackets their range. Goal: at least {GOAL}.",
        "",
        f"| model | work | room for {FITTING} | all resident | ratio | from the cache | the best a cache can |",
        "|---|---|---|---|---|---|---|",
    ]
    found = {(name, kind): parts[f"{name}/{kind}"] for name in SHAPES for kind in KINDS if f"{name}/{kind}" in parts}
    lines += [_row(name, kind, part) for (name, kind), part in found.items()]
    lines.append("")
    for (name, kind), part in found.items():
        lines += _about(name, kind, part)
    lines += [
        "",
        "A prompt that is not resident costs the prefill of its own 20 tokens beside those of the text, and nothing",
        "else: its vectors come from main memory. That bounds the loss however many tasks there are. What is asked for",
        "most stays, because a newcomer must be wanted as often as what it would push out.",
    ]
    if registry := parts.get("registry"):
        lines += ["", "## The registry", "", *registry["lines"]]
    return "\n".join([*lines, ""])


def _row(name: str, kind: str, part: dict[str, Any]) -> str:
    large, small = (median(side) for side in zip(*part["rates"], strict=True))
    ratio = spread([few / of_all for of_all, few in part["rates"]])
    shares = f"{part['reused']:.0%} | {part['reach']:.0%}"
    return f"| {name} | {KINDS[kind]} | {small:.3g} /s | {large:.3g} /s | **{ratio}** | {shares} |"


def _about(name: str, kind: str, part: dict[str, Any]) -> list[str]:
    """When and how a row was measured, what all prompts take, and which rounds were disturbed."""
    size, room = part["prompt_bytes"], part["room"]
    whole = f"{TASKS:,} prompts of {size / 1024:.0f} KiB are {TASKS * size / 2**30:.2f} GiB"
    fits = f"{whole}: all fit" if room >= TASKS else f"{whole}: room for {room:,}, which stand for all"
    lines = [
        f"- {name}, {KINDS[kind]}: {part['conditions']}; runner `{part['runner']}`; {len(part['rates'])} rounds of "
        f"{part['requests']} requests; {fits}."
    ]
    return lines + [f"  {line[0].upper()}{line[1:]}." for line in part["disturbed"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", choices=[*KINDS, "registry", []])
    parser.add_argument("--model", choices=list(SIZES), default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, help="in a round; without it what suits the model")
    parser.add_argument("--warming", type=int, default=3000, help="prompts that the small engine is asked for first")
    parser.add_argument("--write", type=Path, help="folder of the page and of what was measured")
    given = parser.parse_args()
    kept = given.write / "many-tasks.json" if given.write else None
    parts: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept and kept.exists() else {}
    requests = dict.fromkeys(KINDS, given.requests) if given.requests else SIZES[given.model].requests
    for part in given.parts or (*KINDS, "registry"):
        if part == "registry":
            parts[part] = registry()
        else:
            size = Size(requests, given.warming, given.rounds)
            parts[f"{given.model}/{part}"] = measure(part, SHAPES[given.model], size)
        if kept:
            kept.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
            kept.with_suffix(".md").write_text(render(parts), encoding="utf-8")
    print(render(parts))


def registry() -> dict[str, Any]:
    figures = registering.measure(TASKS, replicas=2)
    return {
        "lines": [f"`python -m benchmarks.registering`; {conditions()}.", "", "| | |", "|---|---|", *figures.lines()]
    }


if __name__ == "__main__":
    main()
