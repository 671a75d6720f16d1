"""The matrix names tests that exist; no fault is without one or a reason; a failure counts as a violation."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fault_matrix.faults import FAULTS
from tests.fault_matrix.matrix import ROOT, Tally, count, faults_of, page_of, state

REFERENCES = sorted({reference for fault in FAULTS for reference in fault.tests})


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("reference", REFERENCES)
def test_every_reference_is_a_test_that_exists(reference: str) -> None:
    file, _, name = reference.partition("::")
    found = {name for name in functions(ROOT / file) if name.startswith("test_")}
    assert found if name == "*" else name in found


def test_faults_are_numbered_in_order_and_each_has_a_test_or_a_reason() -> None:
    assert [fault.number for fault in FAULTS] == list(range(1, 55))
    assert all(fault.tests or fault.gap for fault in FAULTS)


def test_test_is_found_with_and_without_its_case() -> None:
    name = "tests/unit/engine/test_strikes.py::test_poison_asked_again_and_again_is_refused_and_its_neighbours_are_not"
    assert [fault.number for fault in faults_of(name)] == [fault.number for fault in faults_of(name + "[text]")] == [35]
    assert faults_of("tests/unit/engine/test_sampling.py::test_samples_follow_the_distribution") == []


def report(outcome: str, when: str = "call") -> Any:
    return SimpleNamespace(outcome=outcome, when=when)


def test_tries_and_violations_are_counted_and_told() -> None:
    tally = Tally()
    for one in (report("passed"), report("failed"), report("failed", "teardown"), report("skipped", "setup")):
        count(tally, one, 3)
    assert (tally.tests, tally.tries, tally.violations, tally.skipped) == (2, 6, 2, 1)
    assert state(FAULTS[0], tally) == "VIOLATED"
    page = page_of({1: tally, 2: Tally(tests=1, tries=40)})
    assert "1 carried out and held, 46 tries, 2 violations" in page
    assert "| 1 | a publisher is killed" in page
    assert "VIOLATED" in page
    assert "not carried out" in page
