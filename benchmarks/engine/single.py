"""Goals about one request at a time, about bare prefill, and about memory."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.engine.ceilings import read_floor_s, request_flops
from benchmarks.engine.report import Section, Verdict
from benchmarks.engine.stage import Stage
from benchmarks.engine.wire import PeerFailed
from benchmarks.engine.workload import Workload

_REQUESTS = 4  # a round, each alone


def alone(stage: Stage, key: str, title: str, work: Workload) -> Section:
    """One request with nothing beside it: time to the first token and for each later one, and decode's read floor."""
    plain = "`generate`"
    peers = {plain: "generate", "vLLM, blocks of 32": "vllm-32", "**Chorus**": "chorus"}
    times: dict[str, tuple[list[float], list[float]]] = {label: ([], []) for label in peers}
    notes: dict[str, str] = {}
    for label, peer in peers.items():
        try:
            stage.prepare(peer, "", work)
        except PeerFailed as error:
            notes[label] = str(error)
    floors = []
    for turn in range(1, stage.rounds + 1):
        for label, peer in peers.items():
            if label not in notes:
                answer = stage.ask(peer, "alone", turn=1000 + turn, count=_REQUESTS)
                times[label][0].append(statistics.median(answer["first_s"]))
                times[label][1].append(statistics.median(answer["per_token_s"]))
        floors.append(read_floor_s(stage.shape, stage.ask("ceilings", "measure")["read"]))
    section = Section(
        key, f"{stage.shape.name}: {title}", ["", "first token, ms", "each later token, ms", "generate ÷ it"]
    )
    for label, (first, later) in times.items():
        if label in notes:
            section.rows.append([label, f"not measured: {notes[label]}", "", ""])
            continue
        faster = "" if plain in notes else ", ".join(f"{_ratio(times[plain][i], times[label][i]):.2f}×" for i in (0, 1))
        section.rows.append([label, _ms(first), _ms(later), faster])
    section.rows.append(["reading every weight once", "", _ms(floors), ""])
    _, later = times["**Chorus**"]
    for what, i in (("time to first token", 0), ("time for each later token", 1)) if plain not in notes else ():
        faster_by = _ratio(times[plain][i], times["**Chorus**"][i])
        section.verdicts.append(Verdict(f"{what}, against `generate`", f"{faster_by:.2f}×", "≥ 1.5×", faster_by >= 1.5))
    if stage.shape.name == "0.5b":
        share = _ratio(floors, later)
        section.verdicts.append(
            Verdict("decode at batch 1 against the read floor", f"{100 * share:.0f} %", "≥ 70 %", share >= 0.7)
        )
    section.raw = {label: {"first_s": a, "per_token_s": b} for label, (a, b) in times.items()} | {"floor_s": floors}
    return section


def prefill(stage: Stage, key: str) -> Section:
    """Rows of 128 tokens, no prompt, one position of logits each, against the fastest products of their shapes."""
    length, count = 128, 32
    work = Workload(kind="labels", tasks=1, prompt=(0, 0), text=(length, length), seed=43)
    stage.prepare("chorus", "prefill", work)
    flops = count * request_flops(stage.shape, prompt=0, text=length, new_tokens=1)
    ours, ceilings = [], []
    for turn in range(1, stage.rounds + 1):
        ours.append(flops / stage.ask("chorus", "measure", turn=turn, count=count, slot="prefill")["seconds"])
        ceilings.append(max(stage.ask("ceilings", "measure")["gemm"].values()))
    share = statistics.median(a / b for a, b in zip(ours, ceilings, strict=True))
    return Section(
        key,
        f"{stage.shape.name}: prefill against the GEMM ceiling",
        ["", "GFLOP/s"],
        [["fastest products of the model's shapes", _giga(ceilings)], ["**Chorus**, whole prefill", _giga(ours)]],
        [Verdict("prefill ÷ GEMM ceiling", f"{100 * share:.0f} %", "≥ 65 %", share >= 0.65)],
        [f"{count} rows of {length} tokens, no prompt; products, attention and one position of logits counted"],
        raw={"chorus": ours, "ceiling": ceilings},
    )


def memory(stage: Stage, key: str) -> Section:
    """Resident set of a serving engine, and what of it is neither weights nor keys and values nor imports."""
    stage.dismiss("chorus-lean")
    bare = stage.ask("imports", "memory")["memory_mib"]["resident"]
    stage.prepare("chorus-lean", "", Workload(seed=44))
    stage.ask("chorus-lean", "measure", turn=1, count=stage.requests)
    now = stage.ask("chorus-lean", "statistics")
    weights = (stage.folder / "model.safetensors").stat().st_size / 2**20
    slots = now["kv_places"] * stage.shape.kv_bytes_per_token / 2**20
    prompts = now["prefix_bytes"] / 2**20
    total = now["memory_mib"]["resident"]
    beyond = total - weights - slots - prompts - bare
    rows: list[tuple[str, float]] = [
        ("resident set of the serving engine", total),
        ("weights", weights),
        ("keys and values of the slots", slots),
        ("keys and values of prompts", prompts),
        ("a process that imports torch, transformers and the model's code", bare),
        ("**beyond these**", beyond),
    ]
    return Section(
        key,
        f"{stage.shape.name}: resident memory",
        ["", "MiB"],
        [[label, f"{value:.0f}"] for label, value in rows],
        [Verdict("beyond weights, keys and values, imports", f"{beyond * 1.048576:.0f} MB", "≤ 150 MB", beyond <= 143)],
        [f"after {stage.requests} requests of the mix, at rest; 64 rows of at most 256 tokens"],
        raw=dict(rows),
    )


def _ratio(these: Sequence[float], those: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


def _ms(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.3g}"


def _giga(rates: Sequence[Any]) -> str:
    return f"{statistics.median(rates) / 1e9:.0f}"
