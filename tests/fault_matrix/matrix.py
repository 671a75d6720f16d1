"""A pytest plugin: runs the tests of the fault matrix and writes what became of every fault.

    python -m pytest -p tests.fault_matrix.matrix --faults docs/results/faults.md -m "not gpu"

A test counts as one try, a parametrized one as many as it has cases; one that kills more than once says how often with
`record_property("tries", n)`. A failure is a violation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.statistics import conditions
from tests.fault_matrix.faults import FAULTS, Fault

ROOT = Path(__file__).parents[1]


@dataclass
class Tally:
    tests: int = 0
    tries: int = 0
    violations: int = 0
    skipped: int = 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", metavar="FILE", type=Path, help="run the fault matrix alone, and write its page")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--faults"):
        config.pluginmanager.register(Matrix(config.getoption("--faults")), "fault-matrix")


def faults_of(nodeid: str) -> list[Fault]:
    """The faults that a test belongs to. `nodeid` as pytest has it, with or without its case."""
    name = nodeid.removeprefix("tests/").partition("[")[0]
    anything = name.partition("::")[0] + "::*"
    return [fault for fault in FAULTS if name in fault.tests or anything in fault.tests]


class Matrix:
    def __init__(self, page: Path) -> None:
        self._page = page
        self._tallies: dict[int, Tally] = defaultdict(Tally)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        wanted = [item for item in items if faults_of(item.nodeid)]
        config.hook.pytest_deselected(items=[item for item in items if not faults_of(item.nodeid)])
        items[:] = wanted

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        tries = next((int(str(n)) for name, n in report.user_properties if name == "tries"), 1)
        for fault in faults_of(report.nodeid):
            count(self._tallies[fault.number], report, tries)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):  # one of several: whoever gathers the reports writes the page
            return
        self._page.write_text(page_of(self._tallies), encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in lines_of(self._tallies):
            terminalreporter.write_line(line)


def count(tally: Tally, report: pytest.TestReport, tries: int) -> None:
    """A test that fails before or behind its call is a violation too."""
    tally.violations += report.outcome == "failed"
    if report.outcome == "skipped":
        tally.skipped += 1
    elif report.when == "call":
        tally.tests += 1
        tally.tries += tries


def lines_of(tallies: dict[int, Tally]) -> Iterable[str]:
    for fault in FAULTS:
        tally = tallies.get(fault.number, Tally())
        counts = f"{tally.tries:5} tries {tally.violations:3} violations"
        yield f"{fault.number:3} {fault.what[:70]:70} {counts}  {state(fault, tally)}"


def state(fault: Fault, tally: Tally) -> str:
    if tally.violations:
        return "VIOLATED"
    if tally.tests:
        return "held"
    return "not carried out" if fault.tests else "no test"


def page_of(tallies: dict[int, Tally]) -> str:
    """The Markdown page."""
    held = sum(state(fault, tallies.get(fault.number, Tally())) == "held" for fault in FAULTS)
    violations = sum(tally.violations for tally in tallies.values())
    tries = sum(tally.tries for tally in tallies.values())
    head = [
        "# What breaks, and what does not",
        "",
        f"`make chaos`; {conditions()}. {len(FAULTS)} faults: {held} carried out and held, {tries} tries, "
        f"{violations} violations. A try is one case of a test, or one kill of a test that kills.",
    ]
    for group in dict.fromkeys(fault.group for fault in FAULTS):
        head += [
            "",
            f"## {group.capitalize()}",
            "",
            "| | fault | expected | tests | tries | violations | |",
            "|---|---|---|---|---|---|---|",
        ]
        for fault in (fault for fault in FAULTS if fault.group == group):
            tally = tallies.get(fault.number, Tally())
            said = state(fault, tally) + (f": {fault.gap}" if fault.gap else "")
            head.append(
                f"| {fault.number} | {fault.what} | {fault.expected} | {tally.tests} | {tally.tries} "
                f"| {tally.violations} | {said} |"
            )
    head += ["", "A kill does not test the loss of power: the order of fsyncs is not proven by it.", ""]
    return "\n".join(head)
