"""Goals about one request at a time, about bare prefill, and about memory."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.engine.ceilings import read_floor_s, request_flops
from benchmarks.engine.pairs import spread
from benchmarks.engine.report import Section, Verdict
from benchmarks.engine.stage import Stage
from benchmarks.engine.wire import PeerFailed
from benchmarks.engine.workload import Workload

_REQUESTS = 4  # a round, each alone
_PLAIN, _OURS = "`generate`", "**Chorus**"
_ALONE = {_PLAIN: "generate", "vLLM, blocks of 32": "vllm-32", _OURS: "chorus"}
_ROOM, _BEYOND = "room of the slots", "**beyond these**"
_MIB = 1 << 20


@dataclass
class Times:
    """Seconds to the first token and for each later one, a median for each round; `note`: why there are none."""

    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    note: str = ""


def alone(stage: Stage, key: str, title: str, work: Workload) -> Section:
    """One request with nothing beside it: time to the first token and for each later one. How fast memory is read,
    decode's floor, is measured right before and after Chorus' turn: it moves by half within minutes."""
    times: dict[str, Times] = {label: Times() for label in _ALONE}
    for label, peer in _ALONE.items():
        try:
            stage.prepare(peer, "", work)
        except PeerFailed as error:
            times[label].note = str(error)
    floors: list[tuple[float, float]] = []
    alive = [label for label in _ALONE if not times[label].note]
    for turn in range(1, stage.rounds + 1):
        shift = turn % max(1, len(alive))
        for label in (*alive[shift:], *alive[:shift]):
            before = _read_floor(stage) if label == _OURS else 0.0
            answer = stage.ask(_ALONE[label], "alone", turn=1000 + turn, count=_REQUESTS)
            times[label].first.append(statistics.median(answer["first_s"]))
            times[label].later.append(statistics.median(answer["per_token_s"]))
            if label == _OURS:
                floors.append((before, _read_floor(stage)))
    columns = ["", "first token, ms", "each later token, ms", "generate ÷ it"]
    section = Section(key, f"{stage.shape.name}: {title}", columns)
    section.rows = [_alone_row(label, times) for label in _ALONE]
    section.rows.append(
        ["reading every weight once, mean of right before and after Chorus", "", _ms([_mean(*f) for f in floors]), ""]
    )
    section.verdicts = _alone_verdicts(stage, times, floors)
    section.raw = {label: {"first_s": one.first, "per_token_s": one.later} for label, one in times.items()}
    section.raw["floor_before_after_s"] = floors
    return section


def _alone_row(label: str, times: Mapping[str, Times]) -> list[str]:
    own, plain = times[label], times[_PLAIN]
    if own.note:
        return [label, f"not measured: {own.note}", "", ""]
    pairs = ((plain.first, own.first), (plain.later, own.later))
    faster = "" if plain.note else ", ".join(f"{_ratio(these, those):.2f}×" for these, those in pairs)
    return [label, _ms(own.first), _ms(own.later), faster]


def _alone_verdicts(stage: Stage, times: Mapping[str, Times], floors: Sequence[tuple[float, float]]) -> list[Verdict]:
    ours, plain = times[_OURS], times[_PLAIN]
    said = []
    if ours.note:
        return []
    if not plain.note:
        for what, these, those in (
            ("time to first token", plain.first, ours.first),
            ("time for each later token", plain.later, ours.later),
        ):
            faster = _ratio(these, those)
            said.append(Verdict(f"{what}, against `generate`", f"{faster:.2f}×", "≥ 1.5×", faster >= 1.5))
    if stage.shape.name == "0.5b":
        shares = floor_shares(floors, ours.later)
        figure = f"{spread([100 * share for share in shares], '.0f')} %"
        met = statistics.median(shares) >= 0.7
        said.append(Verdict("decode at batch 1 against the read floor", figure, "≥ 70 %", met))
    return said


def floor_shares(floors: Sequence[tuple[float, float]], later: Sequence[float]) -> list[float]:
    """Round by round: the mean of the floors right before and right after, by the seconds a token took between."""
    return [_mean(*pair) / taken for pair, taken in zip(floors, later, strict=True)]


def _read_floor(stage: Stage) -> float:
    return read_floor_s(stage.shape, stage.ask("ceilings", "read")["read"])


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
    """Resident set of a serving engine, and what of it is neither weights nor keys and values nor imports: each round
    in processes started afresh."""
    rounds = [_memory_once(stage, turn) for turn in range(1, stage.rounds + 1)]
    section = Section(key, f"{stage.shape.name}: resident memory", ["", "MiB", "range"])
    for label in rounds[0]:
        if label == _ROOM:
            continue
        values = [one[label] for one in rounds]
        section.rows.append([label, f"{statistics.median(values):.0f}", f"{min(values):.0f}–{max(values):.0f}"])
    beyond = [one[_BEYOND] * 1.048576 for one in rounds]
    section.verdicts = [
        Verdict(
            "beyond weights, keys and values, imports",
            f"{spread(beyond, '.0f')} MB",
            "≤ 150 MB",
            statistics.median(beyond) <= 150,
        )
    ]
    section.notes = [
        f"{stage.rounds} fresh processes of each kind, engines after {stage.requests} requests of the mix, at rest; "
        f"64 rows of at most 256 tokens, whose slots have room for {rounds[0][_ROOM]:.0f} MiB; only what of it lies in "
        "real pages is in the resident set, and only that is taken off"
    ]
    section.raw = {label: [one[label] for one in rounds] for label in rounds[0]}
    return section


def _memory_once(stage: Stage, turn: int) -> dict[str, float]:
    """MiB by what they are, of processes of their own."""
    stage.dismiss("chorus-lean")
    stage.dismiss("imports")
    bare = stage.ask("imports", "memory")["memory_mib"]["resident"]
    stage.prepare("chorus-lean", "", Workload(seed=44))
    stage.ask("chorus-lean", "measure", turn=turn, count=stage.requests)
    now = stage.ask("chorus-lean", "statistics")
    stage.dismiss("chorus-lean")
    stage.dismiss("imports")
    weights = (stage.folder / "model.safetensors").stat().st_size
    return memory_parts(
        resident=now["memory_mib"]["resident"],
        weights=weights / _MIB,
        slots=now["slot_bytes_resident"] / _MIB,
        room=now["slot_bytes"] / _MIB,
        prompts=now["prefix_bytes"] / _MIB,
        bare=bare,
    )


def memory_parts(
    *, resident: float, weights: float, slots: float, room: float, prompts: float, bare: float
) -> dict[str, float]:
    """The rows of the table: what is there, what is known of it, and what is left."""
    return {
        "resident set of the serving engine": resident,
        "weights": weights,
        _ROOM: room,
        "keys and values of the slots, in real pages": slots,
        "keys and values of prompts": prompts,
        "a process that imports torch, transformers and the model's code": bare,
        _BEYOND: resident - weights - slots - prompts - bare,
    }


def _mean(*values: float) -> float:
    return statistics.mean(values)


def _ratio(these: Sequence[float], those: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


def _ms(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.3g}"


def _giga(rates: Sequence[Any]) -> str:
    return f"{statistics.median(rates) / 1e9:.0f}"
