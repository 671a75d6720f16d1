"""A pytest plugin: runs the tests of the fault matrix and writes what became of every fault.

    python -m pytest -p tests.fault_matrix.matrix --faults docs/results/faults.md -m "not gpu"

A test counts as one try, a parametrized one as many as it has cases; one that does it more than once says how often
with `record_property("tries", n)`, and what it measured with `record_property("told", text)`. A failure is a violation.
A test that belongs to two faults counts for both, and once in the page's sum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.statistics import conditions
from tests.fault_matrix.faults import FAULTS, Fault

ROOT = Path(__file__).parents[1]


@dataclass
class Outcome:
    """What became of one case of a test; a failure before or behind its call counts, too."""

    carried_out: bool = False
    tries: int = 0
    violations: int = 0
    skipped: bool = False
    told: str = ""


@dataclass
class Tally:
    """What became of several."""

    tests: int = 0
    tries: int = 0
    violations: int = 0
    skipped: int = 0
    told: tuple[str, ...] = ()

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Tally:
        found = list(outcomes)
        return cls(
            tests=sum(one.carried_out for one in found),
            tries=sum(one.tries for one in found),
            violations=sum(one.violations for one in found),
            skipped=sum(one.skipped for one in found),
            told=tuple(one.told for one in found if one.told),
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", metavar="FILE", type=Path, help="run the fault matrix alone, and write its page")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--faults"):
        config.pluginmanager.register(Matrix(config.getoption("--faults")), "fault-matrix")


def faults_of(nodeid: str) -> list[Fault]:
    """The faults that a test belongs to. `nodeid` as pytest has it, with or without its case."""
    name = nodeid.removeprefix("tests/").partition("[")[0]
    return [fault for fault in FAULTS if name in fault.tests]


class Matrix:
    def __init__(self, page: Path) -> None:
        self._page = page
        self._outcomes: dict[str, Outcome] = defaultdict(Outcome)  # by node id

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        wanted = [item for item in items if faults_of(item.nodeid)]
        config.hook.pytest_deselected(items=[item for item in items if not faults_of(item.nodeid)])
        items[:] = wanted

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            note(self._outcomes[report.nodeid], report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):  # one of several: whoever gathers the reports writes the page
            return
        self._page.write_text(page_of(self._outcomes), encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in lines_of(self._outcomes):
            terminalreporter.write_line(line)


def note(outcome: Outcome, report: pytest.TestReport) -> None:
    said = {name: str(value) for name, value in report.user_properties}
    outcome.violations += report.outcome == "failed"
    outcome.told = said.get("told", outcome.told)
    if report.outcome == "skipped":
        outcome.skipped = True
    elif report.when == "call":
        outcome.carried_out = True
        outcome.tries = int(said.get("tries", 1))


def tally_of(fault: Fault, outcomes: Mapping[str, Outcome]) -> Tally:
    return Tally.of(outcome for nodeid, outcome in outcomes.items() if fault in faults_of(nodeid))


def lines_of(outcomes: Mapping[str, Outcome]) -> Iterable[str]:
    for fault in FAULTS:
        tally = tally_of(fault, outcomes)
        counts = f"{tally.tries:5} tries {tally.violations:3} violations"
        yield f"{fault.number:3} {fault.what[:70]:70} {counts}  {state(fault, tally)}"


def state(fault: Fault, tally: Tally) -> str:
    if tally.violations:
        return "VIOLATED"
    skipped = f", {tally.skipped} skipped" if tally.skipped else ""
    if tally.tests:
        return "held" + skipped
    return ("not carried out" if fault.tests else "no test") + skipped


def page_of(outcomes: Mapping[str, Outcome]) -> str:
    """The Markdown page."""
    tallies = {fault.number: tally_of(fault, outcomes) for fault in FAULTS}
    states = [state(fault, tallies[fault.number]) for fault in FAULTS]
    held, partly = states.count("held"), sum(one.startswith("held,") for one in states)
    total = Tally.of(outcomes.values())
    head = [
        "# What breaks, and what does not",
        "",
        f"`make chaos`; {conditions()}. {len(FAULTS)} faults: {held} carried out and held, {partly} with some of their "
        f"tests skipped; {total.tests} tests, {total.tries} tries, {total.violations} violations, {total.skipped} "
        "skipped. A try is one case of a test, or one kill of a test that kills; a test of two faults stands in both "
        "lines and counts once here.",
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
            tally = tallies[fault.number]
            said = "; ".join([state(fault, tally) + (f": {fault.gap}" if fault.gap else ""), *tally.told])
            head.append(
                f"| {fault.number} | {fault.what} | {fault.expected} | {tally.tests} | {tally.tries} "
                f"| {tally.violations} | {said} |"
            )
    head += ["", "A kill does not test the loss of power: the order of fsyncs is not proven by it.", ""]
    return "\n".join(head)
