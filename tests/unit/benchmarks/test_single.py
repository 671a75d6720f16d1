from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.engine.models import SHAPES
from benchmarks.engine.single import alone, floor_shares, memory, memory_parts
from benchmarks.engine.wire import PeerFailed
from benchmarks.engine.workload import Workload

MIB = 1 << 20


def test_share_of_the_floor_when_memory_changes_is_of_the_readings_around_each_round() -> None:
    assert floor_shares([(1.0, 3.0), (4.0, 4.0)], [4.0, 5.0]) == [0.5, 0.8]


class Alone:
    """Stands for a stage at 0.5b, whose memory halves its speed from the third reading on."""

    rounds, shape = 2, SHAPES["0.5b"]

    def __init__(self, missing: str = "") -> None:
        self.asked: list[tuple[str, str]] = []
        self.reads, self.missing = 0, missing

    def prepare(self, peer: str, *_: object) -> None:
        if peer == self.missing:
            raise PeerFailed("it is not there")

    def ask(self, peer: str, op: str, **_: object) -> dict[str, Any]:
        self.asked.append((peer, op))
        if peer == "ceilings":
            self.reads += 1
            weights = self.shape.layer_weights + self.shape.head_weights
            return {"read": weights * 2 / (0.01 if self.reads < 3 else 0.02)}
        return {"first_s": [0.1, 0.3, 0.2], "per_token_s": [0.0125]}


def test_floor_when_chorus_answers_alone_is_read_right_before_and_after_it() -> None:
    stage = Alone()
    section = alone(stage, "0.5b/alone", "alone", Workload(prompt=(20, 20)))  # type: ignore[arg-type]
    ours = [i for i, (peer, _) in enumerate(stage.asked) if peer == "chorus"]
    assert [(stage.asked[i - 1], stage.asked[i + 1]) for i in ours] == [
        (("ceilings", "read"), ("ceilings", "read"))
    ] * 2
    assert stage.asked.count(("ceilings", "read")) == 4
    floor = section.verdicts[-1]
    assert floor.what == "decode at batch 1 against the read floor"
    assert (floor.figure, floor.met) == ("120 (80–160) %", True)
    assert section.raw["floor_before_after_s"] == [(pytest.approx(0.01),) * 2, (pytest.approx(0.02),) * 2]
    assert section.rows[0][:3] == ["`generate`", "200", "12.5"]


def test_section_when_a_peer_is_missing_says_so_and_measures_the_rest() -> None:
    section = alone(Alone("generate"), "0.5b/alone", "alone", Workload())  # type: ignore[arg-type]
    assert section.rows[0][1] == "not measured: it is not there"
    assert [verdict.what for verdict in section.verdicts] == ["decode at batch 1 against the read floor"]


def test_memory_when_taken_apart_takes_off_what_is_real_of_the_slots() -> None:
    parts = memory_parts(resident=1000, weights=500, slots=100, room=192, prompts=10, bare=300)
    assert parts["**beyond these**"] == 90


def test_memory_when_measured_starts_every_process_afresh_each_round(tmp_path: Path) -> None:
    resident = iter([1000.0, 1040.0, 1010.0])
    log: list[tuple[str, str]] = []

    class Fresh:
        rounds, requests, shape = 3, 16, SHAPES["tiny"]
        folder = tmp_path

        def dismiss(self, peer: str) -> None:
            log.append(("dismiss", peer))

        def prepare(self, peer: str, *_: object) -> None:
            log.append(("start", peer))

        def ask(self, peer: str, op: str, **_: object) -> dict[str, Any]:
            if op == "statistics":
                return {
                    "memory_mib": {"resident": next(resident)},
                    "slot_bytes": 384 * MIB,
                    "slot_bytes_resident": 200 * MIB,
                    "prefix_bytes": 20 * MIB,
                }
            return {"memory_mib": {"resident": 300.0}}

    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(380 * MIB)  # a hole: it takes no room
    section = memory(Fresh(), "tiny/memory")  # type: ignore[arg-type]
    assert log.count(("start", "chorus-lean")) == 3
    for i in [i for i, entry in enumerate(log) if entry == ("start", "chorus-lean")]:
        assert {("dismiss", "chorus-lean"), ("dismiss", "imports")} <= set(log[max(0, i - 2) : i])
    assert section.rows[-1] == ["**beyond these**", "110", "100–140"]
    assert section.verdicts[0].figure == "115 (105–147) MB"
    assert section.verdicts[0].met is True
    assert "384 MiB" in section.notes[0]
    assert section.raw["**beyond these**"] == [100.0, 140.0, 110.0]
