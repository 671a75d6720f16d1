from __future__ import annotations

import pytest

from benchmarks.engine.pairs import Pair, disturbed, in_pairs, spread
from benchmarks.engine.tasks import TURNS, thousand_tasks


def runs(*pairs: Pair) -> tuple[list[Pair], object]:
    left = list(pairs)
    return left, lambda: left.pop(0)


def test_round_when_one_rate_is_below_half_of_its_median_is_disturbed() -> None:
    assert disturbed([(100.0, 90.0), (100.0, 90.0), (49.0, 90.0), (100.0, 44.0), (51.0, 46.0)]) == [2, 3]
    assert disturbed([]) == disturbed([(1.0, 1.0)]) == []


def test_round_when_disturbed_is_repeated_and_told() -> None:
    good: Pair = (100.0, 95.0)
    left, run = runs(good, (30.0, 90.0), good, (100.0, 98.0))
    found = in_pairs(run, 3)  # type: ignore[arg-type]
    assert not left
    assert found.kept == [good, (100.0, 98.0), good]
    assert found.replaced == [(1, (30.0, 90.0))]
    assert found.ratios == [0.95, 0.98, 0.95]
    assert found.told("one", "many") == ["round 2 was disturbed (one 30/s, many 90/s) and repeated"]


def test_round_when_it_stays_disturbed_is_repeated_twice_and_counts() -> None:
    good: Pair = (100.0, 95.0)
    left, run = runs(good, good, (10.0, 90.0), (11.0, 90.0), (12.0, 90.0), good)
    found = in_pairs(run, 3)  # type: ignore[arg-type]
    assert left == [good]  # no third repetition
    assert found.kept == [good, good, (12.0, 90.0)]
    assert [pair for _, pair in found.replaced] == [(10.0, 90.0), (11.0, 90.0)]
    assert found.told("one", "many")[-1] == "round 3 was disturbed (one 12/s, many 90/s) and counted all the same"


def test_spread_when_told_is_median_and_range() -> None:
    assert spread([0.9, 1.0, 0.95]) == "0.95 (0.90–1.00)"
    assert spread([70.4, 53.0, 81.0], ".0f") == "70 (53–81)"


class Machine:
    """Stands for a stage: `slow` measurements, by their number, take ten times as long."""

    rounds, requests = 3, 10

    class shape:  # noqa: N801
        name = "tiny"

    def __init__(self, slow: set[int]) -> None:
        self.slow, self.asked = slow, []

    def prepare(self, *_: object) -> None: ...

    def ask(self, _: str, __: str, *, turn: int, count: int, slot: str) -> dict[str, float]:
        self.asked.append((turn, slot))
        seconds = 1.0 if slot == "one" else 1.25
        return {"seconds": seconds * (10 if len(self.asked) - 1 in self.slow else 1)}


@pytest.mark.parametrize(("slow", "measurements"), [(set(), 12), ({5}, 16)])
def test_thousand_tasks_when_a_minute_is_disturbed_measures_its_round_again(slow: set[int], measurements: int) -> None:
    machine = Machine(slow)
    section = thousand_tasks(machine, "tiny/tasks", "generation")  # type: ignore[arg-type]
    assert len(machine.asked) == measurements
    assert [slot for _, slot in machine.asked[:4]] == list(TURNS) == ["one", "many", "many", "one"]
    assert len({turn for turn, _ in machine.asked}) == measurements  # no text twice
    assert section.verdicts[0].figure == "0.80 (0.80–0.80)"
    assert section.rows[0] == ["Chorus, one task", "10", "10–10"]
    assert sum("round 2 was disturbed" in note for note in section.notes) == len(slow)
    assert len(section.raw["disturbed"]) == len(slow)
