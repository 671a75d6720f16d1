"""Ten thousand tasks, room for five hundred: what a device budget that is twenty times too small costs.

    python -m benchmarks.many_tasks [labels] [generate] [registry] [--write docs/results]

Tasks of P = 20 vectors on the `tiny` shape with random weights are asked for by Zipf's law (s = 1). One engine has a
budget for the keys and values of 500 prompts, the other for all; both get the same requests in interleaved rounds, the
vectors handed along with each request as the service does. `registry` is `registering.py`. What was measured stays in
a JSON file beside the page, so that one part can be run anew alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from app.backbone import Backbone
from app.backbone.backbone import make_tokenizer, wrap_model
from app.backbone.rows import Row
from app.backbone.verbalizer import Verbalizer
from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.types import Request, Sampling
from benchmarks import registering
from benchmarks.engine.models import SHAPES, make_model, save_tokenizer
from benchmarks.engine.workload import Task, Workload, label_ids, make_tasks
from benchmarks.statistics import conditions

SHAPE = SHAPES["tiny"]
TASKS, FITTING, P = 10_000, 500, 20
PROMPT_BYTES = P * SHAPE.kv_bytes_per_token
ROUNDS, WARMING = 5, 3000
REQUESTS = {"labels": 400, "generate": 200}
GOAL = 0.7
_NEVER = 1e12  # a deadline


class Traffic:
    """Requests by Zipf's law over shuffled tasks; no text comes twice."""

    def __init__(self, kind: str) -> None:
        self.work = Workload(kind="labels" if kind == "labels" else "generate", tasks=TASKS, prompt=(P, P))
        self.tasks: list[Task] = make_tasks(self.work, hidden=SHAPE.hidden, vocabulary=SHAPE.vocabulary)
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
        text = dice.integers(0, SHAPE.vocabulary // 2, length).tolist()
        row = Row((*(-1 - j for j in range(P)), *text), P)
        how = {"verbalizer": self._words} if kind == "labels" else {"sampling": Sampling(max_tokens=16)}
        self._sent += 1
        return Request.single(str(self._sent), row, self.digests[task], _NEVER, flow=("", str(task)), **how), task

    def reach(self, count: int) -> float:
        """Share of the requests that go to the `count` tasks asked for most: the best a cache of that size can do."""
        return float(np.sort(self._shares)[::-1][:count].sum())

    def _verbalizer(self) -> Verbalizer:
        ids = label_ids(self.work, SHAPE.vocabulary)
        names = tuple(map(str, ids))
        return Verbalizer(names, tuple((name,) for name in names), tuple(((i,),) for i in ids), terminated=False)


class Seat:
    """One engine with its budget."""

    def __init__(self, backbone: Backbone, prompts: int) -> None:
        config = EngineConfig(max_rows=64, max_context=128, prompt_cache_bytes=prompts * PROMPT_BYTES)
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


def measure(kind: str) -> dict[str, Any]:
    traffic = Traffic(kind)
    backbone = tiny()
    small, large = Seat(backbone, FITTING), Seat(backbone, TASKS + 64)
    rounds = [traffic.requests(turn, REQUESTS[kind]) for turn in range(ROUNDS)]
    asked = sorted({task for requests in rounds for _, task in requests})
    large.run(traffic, traffic.touches(asked))  # all that will be asked for is resident: to time, the same as all
    small.run(traffic, traffic.touches(traffic.drawn(0, WARMING)))  # it learns by the same law what is asked for
    for seat in (small, large):
        seat.run(traffic, traffic.requests(ROUNDS, REQUESTS[kind] // 4))
    before, seconds = {seat: seat.reused() for seat in (small, large)}, []
    for turn, requests in enumerate(rounds):
        order = (small, large) if turn % 2 else (large, small)
        taken = {seat: seat.run(traffic, requests) for seat in order}
        seconds.append((taken[small], taken[large]))
        print(f"    round {turn + 1}: {seconds[-1][0]:.2f} s, all resident {seconds[-1][1]:.2f} s", flush=True)
    hits, misses = (now - then for now, then in zip(small.reused(), before[small], strict=True))
    if large.reused()[1] != before[large][1]:
        raise RuntimeError("prompts were missing where all should be resident")
    return {
        "conditions": conditions(),
        "runner": small.engine.runner.name,
        "requests": REQUESTS[kind],
        "seconds": seconds,
        "reused": hits / (hits + misses),
        "reach": traffic.reach(FITTING),
    }


def tiny() -> Backbone:
    from transformers import AutoTokenizer

    model = make_model(SHAPE)
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(SHAPE.vocabulary, Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return wrap_model(model, make_tokenizer(tokenizer, model), name=SHAPE.name, identity="0" * 64)


def render(parts: dict[str, Any]) -> str:
    lines = [
        "# Ten thousand tasks",
        "",
        f"`python -m benchmarks.many_tasks`. {TASKS:,} tasks of P = {P}, asked for by Zipf's law (s = 1), on `tiny`",
        "(Llama shape, hidden 384, 8 layers, vocabulary 8,192, float32, random weights), 24–48 fresh text tokens, the",
        f"engine driven directly. One has room for keys and values of {FITTING} prompts, the other for all; medians",
        f"of {ROUNDS} interleaved rounds, the ratio being the median of each round's. Goal: at least {GOAL}.",
        "",
        f"| work | room for {FITTING} | all resident | ratio | from the cache | the best a cache can |",
        "|---|---|---|---|---|---|",
    ]
    names = {"labels": "4 labels scored", "generate": "16 new tokens, greedy"}
    found = {kind: parts[kind] for kind in names if kind in parts}
    for kind, part in found.items():
        sides = zip(*part["seconds"], strict=True)
        small, large = (median(part["requests"] / each for each in side) for side in sides)
        ratio = median(of_all / of_few for of_few, of_all in part["seconds"])
        shares = f"{part['reused']:.0%} | {part['reach']:.0%}"
        lines.append(f"| {names[kind]} | {small:.0f} /s | {large:.0f} /s | **{ratio:.2f}** | {shares} |")
    lines += ["", *sorted({f"{part['conditions']}; runner `{part['runner']}`." for part in found.values()}), ""]
    lines += [
        "A prompt that is not resident costs the prefill of its own 20 tokens beside those of the text, and nothing",
        "else: its vectors come from main memory. That bounds the loss however many tasks there are. What is asked for",
        "most stays, because a newcomer must be wanted as often as what it would push out.",
    ]
    if registry := parts.get("registry"):
        lines += ["", "## The registry", "", *registry["lines"]]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", choices=["labels", "generate", "registry", []])
    parser.add_argument("--write", type=Path, help="folder of the page and of what was measured")
    arguments = parser.parse_args()
    kept = arguments.write / "many-tasks.json" if arguments.write else None
    parts: dict[str, Any] = json.loads(kept.read_text()) if kept and kept.exists() else {}
    for part in arguments.parts or ("labels", "generate", "registry"):
        parts[part] = registry() if part == "registry" else measure(part)
    print(render(parts))
    if kept:
        kept.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
        kept.with_suffix(".md").write_text(render(parts), encoding="utf-8")


def registry() -> dict[str, Any]:
    figures = registering.measure(TASKS, replicas=2)
    return {
        "lines": [f"`python -m benchmarks.registering`; {conditions()}.", "", "| | |", "|---|---|", *figures.lines()]
    }


if __name__ == "__main__":
    main()
