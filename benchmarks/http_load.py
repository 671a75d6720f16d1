"""What HTTP costs: 32 clients in a closed loop against the engine alone, capped at 32 rows, on the same work.

    python -m benchmarks.http_load [--models tiny 0.5b] [--rounds 5] [--requests 256] [--write FILE.md]

The work: 8 tasks at random with prompts of 5 to 100 vectors, texts of 24 to 48 tokens that never come twice, 16 new
tokens, greedy. The engine alone is handed all requests at once, as rows of token ids, in a process of its own; the
service gets the same requests as text, through the load generator of `chorus bench`, which shares the cores with it.
Rounds of both alternate; a ratio is that of two neighbouring rounds. Warm prompts in both. What was measured stays in a
JSON file beside the page, so that a model that is not run keeps its row and its own conditions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from app.cli.bench.load import Budget, Load
from app.cli.bench.outcomes import summarise
from app.cli.bench.service import read_sums, work_between
from app.cli.bench.wire import Wire
from app.cli.bench.workload import Shot, Target, Workload
from app.supervisor.embedded import running_url, server_folder
from benchmarks.engine.models import CONTEXT, SHAPES, Shape, model_folder
from benchmarks.engine.wire import Child
from benchmarks.engine.workload import Ask, Task, make_asks, make_tasks
from benchmarks.engine.workload import Workload as Work
from benchmarks.running import Running, checked, running_service
from benchmarks.statistics import conditions
from prompt_store import BackboneRef, Decoding, PromptMeta, PromptStore, TaskSpec

CLIENTS = 32
CACHE_MIB = 256
GOALS = {"tiny": 0.7, "0.5b": 0.9}
WORK = Work(prompt=(5, 100))


@dataclass
class Side:
    """One side's rounds, in requests a second; for the service also what it and the load generator said of them."""

    rates: list[float]
    rows_a_step: list[float]
    generator_share: list[float]
    p50_s: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", choices=sorted(SHAPES), default=["tiny", "0.5b"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=256, help="in one round, on each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of the model, on each side")
    parser.add_argument("--work", type=Path, default=Path(".peers"), help="folder for model files")
    parser.add_argument("--stream", action="store_true", help="stream every answer")
    parser.add_argument("--write", type=Path, help="the page; its JSON lies beside it")
    given = parser.parse_args()
    kept = given.write.with_suffix(".json") if given.write else None
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept and kept.exists() else {}
    for name in given.models:
        found[name] = run(SHAPES[name], given)
        if kept:  # after each model: a run that is broken off has lost nothing
            kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            given.write.write_text(render(found), encoding="utf-8")
    print(render(found))


def run(shape: Shape, given: argparse.Namespace) -> dict[str, Any]:
    """One model: both sides up, warm, and measured in turn; what the page says of it."""
    folder = model_folder(given.work.absolute(), shape.name)
    options = {"model": shape.name, "folder": str(folder), "threads": given.threads, "rows": CLIENTS}
    environment = {
        "CHORUS_MODEL": str(folder),
        "CHORUS_DTYPE": shape.dtype,
        "CHORUS_MAX_ROWS": str(CLIENTS),
        "CHORUS_MAX_CONTEXT": str(CONTEXT),
        "CHORUS_PROMPT_CACHE_MB": str(CACHE_MIB),
        "CHORUS_THREADS": str(given.threads),
        "CHORUS_STARTERS": "false",
    }
    alone = Child(
        "engine",
        "benchmarks.engine.chorus_engine",
        {**options, "prompt_cache_mib": CACHE_MIB},
        python=sys.executable,
        environment={"OMP_NUM_THREADS": str(given.threads)},
    )
    with closing(alone), running_service(**environment) as running:
        tasks = make_tasks(WORK, hidden=shape.hidden, vocabulary=shape.vocabulary)
        alone.ask("prepare", work=WORK.as_json())
        publish(running, shape, tasks)
        served = asyncio.run(measure(running.url, shape, tasks, alone, given))
    return as_json(*served, conditions=conditions(), requests=given.requests, streamed=given.stream)


def publish(running: Running, shape: Shape, tasks: list[Task]) -> None:
    """Make the tasks known to the service and ask each once, so that its prompt is warm."""
    address = running_url(server_folder(running.data_dir))
    assert address is not None
    with (
        httpx.Client(base_url=running.url, timeout=120) as client,
        PromptStore.open(address, running.data_dir / "blobs") as store,
    ):
        backbone = checked(client.get("/health"))["backbone"]
        ref = BackboneRef(name=backbone["name"], fingerprint=backbone["fingerprint"], hidden_size=shape.hidden)
        for number, task in enumerate(tasks):
            meta = PromptMeta(
                task=_name(number),
                template=f"<prompt:{task.size}>{{text}}",
                bos="none",
                method={"type": "prompt_tuning"},
                backbone=ref,
                num_virtual_tokens=task.size,
                decoding=Decoding(max_tokens=WORK.new_tokens),
            )
            store.publish(
                task=_name(number),
                meta=meta,
                tensors={"prompt": task.vectors.numpy()},
                publication=f"http-load-{number}",
                alias="prod",
                spec=TaskSpec(fields=("text",)),
            )
        for number in range(len(tasks)):
            _ask_until_known(client, _name(number))


def _ask_until_known(client: httpx.Client, name: str) -> None:
    for _ in range(100):
        answer = client.post(f"/v1/tasks/{name}/generate", json={"input": "w1 w2 w3"})
        if answer.status_code != 404:
            checked(answer)
            return
    raise SystemExit(f"the service never heard of {name}")


async def measure(
    url: str, shape: Shape, tasks: list[Task], alone: Child, given: argparse.Namespace
) -> tuple[Side, Side]:
    """(engine, service), rounds in turn; the first pair only warms up."""
    engine, service = Side([], [], [], []), Side([], [], [], [])
    async with Wire(url, None) as wire:
        for turn in range(-1, given.rounds):
            asks = make_asks(WORK, tasks, vocabulary=shape.vocabulary, turn=turn + 1, count=given.requests)
            took = alone.ask("measure", turn=turn + 1, count=given.requests)["seconds"]
            found = await over_http(wire, asks, stream=given.stream)
            if turn < 0:
                continue
            engine.rates.append(given.requests / took)
            service.rates.append(found["requests"]["per_s"])
            service.rows_a_step.append(found["service"]["decode"]["rows_per_step"])
            service.generator_share.append(found["load_generator"]["cpu_share"])
            service.p50_s.append(found["latency_s"]["end_to_end"]["p50"])
            print(f"  {shape.name} round {turn}: engine {engine.rates[-1]:.2f}/s, HTTP {service.rates[-1]:.2f}/s")
    return engine, service


async def over_http(wire: Wire, asks: list[Ask], *, stream: bool) -> dict[str, Any]:
    """One round through the service. Raises if any answer is missing or short: both sides must do all of the work."""
    before = await read_sums(wire)
    run = await Load(wire, shots(asks, stream=stream)).closed(CLIENTS, Budget(seconds=None, requests=len(asks)))
    found = {**summarise(run), "service": work_between(before, await read_sums(wire))}
    if found["errors"] or found["generated_tokens"]["total"] != len(asks) * WORK.new_tokens:
        raise SystemExit(f"not all of the work was done: {found['errors']}, {found['generated_tokens']}")
    return found


def shots(asks: list[Ask], *, stream: bool) -> Iterator[Shot]:
    """The requests as text: `w17` is token 17 in these models' tokenizer."""
    for ask in asks:
        text = " ".join(f"w{token}" for token in ask.ids)
        target = Target(_name(ask.task), 1.0, ("text",), streams=True, rows=[{"text": text}])
        yield Workload([target], stream=stream).one(target)


def _name(number: int) -> str:
    return f"load-{number}"


def as_json(engine: Side, service: Side, *, conditions: str, requests: int, streamed: bool) -> dict[str, Any]:
    """One model's figures: medians that the page shows, each round's own under `raw`."""
    median = statistics.median
    ratios = [http / alone for http, alone in zip(service.rates, engine.rates, strict=True)]
    return {
        "conditions": conditions,
        "requests": requests,
        "rounds": len(ratios),
        "streamed": streamed,
        "engine_per_s": median(engine.rates),
        "http_per_s": median(service.rates),
        "ratio": median(ratios),
        "ranges": {
            "engine_per_s": [min(engine.rates), max(engine.rates)],
            "http_per_s": [min(service.rates), max(service.rates)],
            "ratio": [min(ratios), max(ratios)],
        },
        "rows_a_step": median(service.rows_a_step),
        "generator_share": median(service.generator_share),
        "p50_s": median(service.p50_s),
        "raw": {"engine": asdict(engine), "service": asdict(service)},
    }


def render(found: dict[str, Any]) -> str:
    """The page: a row for each model that was ever measured, and under which conditions."""
    names = sorted(found, key=list(SHAPES).index)
    lines = [
        "# What HTTP costs",
        "",
        f"`python -m benchmarks.http_load`: {CLIENTS} clients in a closed loop against the engine alone with at most "
        f"{CLIENTS} rows, handed all requests at once; {WORK.tasks} tasks, {WORK.prompt[0]}–{WORK.prompt[1]} vectors, "
        f"{WORK.text[0]}–{WORK.text[1]} text tokens, {WORK.new_tokens} new tokens. Medians of rounds in turn, ranges in"
        " brackets; a ratio is that of two neighbouring rounds. The clients share the cores.",
        "",
        "| model | engine alone, requests/s | over HTTP, requests/s | ratio | goal | rows a decode step | "
        "load generator, of a core | p50 of a request |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(SHAPES[name], found[name]) for name in names),
        "",
        *(_conditions(name, found[name]) for name in names),
    ]
    return "\n".join([*lines, ""])


def _row(shape: Shape, one: dict[str, Any]) -> str:
    def figure(key: str) -> str:
        span = one["ranges"].get(key)
        return f"{one[key]:.2f}" + (f" ({span[0]:.2f}–{span[1]:.2f})" if span else "")

    return (
        f"| {shape.name} ({shape.dtype}) | {figure('engine_per_s')} | {figure('http_per_s')} | {figure('ratio')} | "
        f"≥ {GOALS[shape.name]} | {one['rows_a_step']:.1f} | {one['generator_share']:.0%} | {one['p50_s']:.2f} s |"
    )


def _conditions(name: str, one: dict[str, Any]) -> str:
    streamed = "streamed" if one["streamed"] else "not streamed"
    kept = "" if one["raw"] else "; each round's own figures were not kept"
    return f"- {name}: {one['conditions']}; {one['rounds']} rounds of {one['requests']} requests, {streamed}{kept}."


if __name__ == "__main__":
    main()
