"""The matrix names tests that exist; no fault is without one or a reason; a failure counts as a violation."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fault_matrix import matrix
from tests.fault_matrix.faults import FAULTS, Fault
from tests.fault_matrix.matrix import ROOT, Outcome, Tally, faults_of, note, page_of, state, tally_of

REFERENCES = sorted({reference for fault in FAULTS for reference in fault.tests})


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("reference", REFERENCES)
def test_every_reference_is_a_test_that_exists(reference: str) -> None:
    file, _, name = reference.partition("::")
    assert name.startswith("test_")
    assert name in functions(ROOT / file)


def test_faults_are_numbered_in_order_and_each_has_a_test_or_a_reason() -> None:
    assert [fault.number for fault in FAULTS] == list(range(1, 55))
    assert all(fault.tests or fault.gap for fault in FAULTS)


def test_test_is_found_with_and_without_its_case() -> None:
    name = "tests/unit/engine/test_strikes.py::test_poison_asked_again_and_again_is_refused_and_its_neighbours_are_not"
    assert [fault.number for fault in faults_of(name)] == [fault.number for fault in faults_of(name + "[text]")] == [35]
    assert faults_of("tests/unit/engine/test_sampling.py::test_samples_follow_the_distribution") == []


def report(outcome: str, when: str = "call", **said: Any) -> Any:
    return SimpleNamespace(outcome=outcome, when=when, user_properties=list(said.items()))


def outcome(*reports: Any) -> Outcome:
    found = Outcome()
    for one in reports:
        note(found, one)
    return found


def test_case_counts_once_with_its_tries_and_every_failure_is_a_violation() -> None:
    assert outcome(report("passed")) == Outcome(carried_out=True, tries=1)
    assert outcome(report("passed", tries=40, told="all")) == Outcome(carried_out=True, tries=40, told="all")
    assert outcome(report("skipped", "setup")) == Outcome(skipped=True)
    assert outcome(report("failed", "setup")) == Outcome(violations=1)
    torn_down = outcome(report("failed", tries=3), report("failed", "teardown", tries=3))
    assert torn_down == Outcome(carried_out=True, tries=3, violations=2)


def test_page_sums_each_test_once_and_shows_what_was_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    tests = {1: ("t.py::never",), 2: ("t.py::bad",), 3: ("t.py::both",), 4: ("t.py::own", "t.py::away", "t.py::both")}
    faults = tuple(Fault(number, "group", f"fault {number}", "survives", names) for number, names in tests.items())
    monkeypatch.setattr(matrix, "FAULTS", faults)
    outcomes = {
        "tests/t.py::both[open]": Outcome(carried_out=True, tries=1),
        "tests/t.py::both[fsync]": Outcome(carried_out=True, tries=1, told="in 3 ms"),
        "tests/t.py::own": Outcome(carried_out=True, tries=5),
        "tests/t.py::away": Outcome(skipped=True),
        "tests/t.py::bad": Outcome(carried_out=True, tries=2, violations=1),
    }
    states = [state(fault, tally_of(fault, outcomes)) for fault in faults]
    assert states == ["not carried out", "VIOLATED", "held", "held, 1 skipped"]
    page = page_of(outcomes)
    assert "4 faults: 1 carried out and held, 1 with some of their tests skipped" in page
    assert "4 tests, 9 tries, 1 violations, 1 skipped" in page
    assert "| 3 | fault 3 | survives | 2 | 2 | 0 | held; in 3 ms |" in page
    assert "| 4 | fault 4 | survives | 3 | 7 | 0 | held, 1 skipped; in 3 ms |" in page


def test_fault_whose_tests_were_all_skipped_has_not_been_carried_out() -> None:
    assert state(FAULTS[0], Tally(skipped=2)) == "not carried out, 2 skipped"
