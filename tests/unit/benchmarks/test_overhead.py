from __future__ import annotations

import pytest

from benchmarks.engine.overhead import Shares, Step, Stopwatch, for_each_row, lines


def shares(rows: int, python: float, board: float) -> Shares:
    step = Step(model=0.008, choice=0.001, whole=0.009 + python, board=board)
    slow = Step(model=0.08, choice=0.01, whole=0.9, board=0.1)
    return Shares.of(rows, [step, step, slow])


def test_python_of_a_step_when_taken_apart_is_what_is_neither_model_nor_choice() -> None:
    assert Step(model=0.008, choice=0.001, whole=0.010, board=0.5).python == pytest.approx(0.001)


def test_shares_when_a_step_was_disturbed_are_medians() -> None:
    assert shares(64, 0.001, 0.0002).python == pytest.approx(0.001)
    assert shares(64, 0.001, 0.0002).board == 0.0002


def test_rows_own_cost_when_two_sizes_are_measured_is_the_slope() -> None:
    few, many = shares(8, 0.0002, 0.00001), shares(64, 0.00076, 0.000122)
    engine, board = for_each_row(few, many)
    assert engine == pytest.approx(10e-6)
    assert board == pytest.approx(2e-6)
    assert "beyond 3%" in lines([few, many])[-1]
    assert "within 3%" in lines([few, shares(64, 0.0003, 0.00002)])[-1]
    assert len(lines([few])) == 2  # no slope of one size


def test_stopwatch_when_read_begins_anew_and_counts_failures() -> None:
    watch = Stopwatch()

    def broken() -> None:
        raise ValueError("no")

    assert watch.around(lambda x: x + 1)(1) == 2
    with pytest.raises(ValueError, match="no"):
        watch.around(broken)()
    assert watch.read() > 0
    assert watch.read() == 0
