"""The team of threads shrinks while its members wait for cores, and grows again when they do not."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from app.engine.crew import CALM_S, LONGEST_CALM_S, WINDOW_S, Crew, waits_for_cores

STEP_S = 0.02


class Machine:
    """Cores of which neighbours want some. Time goes by in steps; a thread too many waits half of it."""

    def __init__(self, cores: int) -> None:
        self.cores, self.neighbours = cores, 0
        self.now, self.waited = 100.0, 0.0
        self.sizes = list[int]()
        self.told = True
        self.crew = Crew(waits=self._waits, clock=lambda: self.now, apply=self.sizes.append)
        self.crew.set_most(cores)

    def work(self, seconds: float) -> int:
        """The size of the team after so long."""
        for _ in range(round(seconds / STEP_S)):
            self.now += STEP_S
            if self.crew.size + self.neighbours > self.cores:
                self.waited += STEP_S / 2
            self.crew.step_done()
        return self.crew.size

    def tries(self, seconds: float) -> int:
        """How often a larger team was tried within the time."""
        before = self.sizes.count(self.cores)
        self.work(seconds)
        return self.sizes.count(self.cores) - before

    def _waits(self) -> dict[int, int]:
        return {1: 0, 2: round(self.waited * 1e9)} if self.told else {}


@pytest.mark.parametrize("cores", [2, 16])
def test_team_stays_whole_while_all_have_cores(cores: int) -> None:
    machine = Machine(cores)
    machine.work(10)
    assert machine.sizes == [cores]


@pytest.mark.parametrize(("cores", "neighbours"), [(2, 1), (2, 2), (16, 1), (16, 9), (16, 16)])
def test_team_shrinks_beside_neighbours_until_its_members_have_cores(cores: int, neighbours: int) -> None:
    machine = Machine(cores)
    machine.neighbours = neighbours
    size = machine.work(3)
    assert 1 <= size <= max(1, cores - neighbours)
    assert machine.work(CALM_S / 2) <= max(1, cores - neighbours)


def test_team_on_two_cores_shrinks_within_two_windows() -> None:
    machine = Machine(2)
    machine.neighbours = 1
    assert machine.work(2 * WINDOW_S + 2 * STEP_S) == 1


def test_team_in_calm_shrinks_within_three_windows() -> None:
    machine = Machine(2)
    machine.work(1)
    machine.neighbours = 1
    assert machine.work(3 * WINDOW_S + 3 * STEP_S) == 1


def test_team_in_calm_does_not_shrink_for_one_crowded_window() -> None:
    machine = Machine(2)
    machine.work(1)
    for _ in range(10):
        machine.neighbours = 1
        machine.work(WINDOW_S)
        machine.neighbours = 0
        machine.work(3 * WINDOW_S)
    assert machine.sizes == [2]


def test_team_is_whole_again_when_neighbours_have_gone() -> None:
    machine = Machine(4)
    machine.neighbours = 3
    machine.work(5)
    machine.neighbours = 0
    assert machine.work(LONGEST_CALM_S + 1) == 4


def test_larger_team_is_tried_ever_more_seldom_while_neighbours_stay() -> None:
    machine = Machine(2)
    machine.neighbours = 1
    machine.work(1)
    assert 2 <= machine.tries(10) <= 4
    machine.work(100)
    assert 2 <= machine.tries(4 * LONGEST_CALM_S) <= 4


def test_neighbour_who_comes_after_long_calm_is_not_taken_for_the_last_one() -> None:
    machine = Machine(2)
    machine.neighbours = 1
    machine.work(60)
    machine.neighbours = 0
    assert machine.work(LONGEST_CALM_S + 2 * CALM_S) == 2
    machine.neighbours = 1
    assert machine.work(0.5) == 1
    machine.neighbours = 0
    assert machine.work(CALM_S + WINDOW_S) == 2


def test_new_limit_counts_at_once_and_is_not_exceeded() -> None:
    machine = Machine(4)
    machine.crew.set_most(2)
    assert machine.work(LONGEST_CALM_S) == 2
    machine.crew.set_most(3)
    assert machine.crew.size == 3


def test_time_without_work_is_not_measured() -> None:
    machine = Machine(2)
    machine.work(1)
    machine.now, machine.waited = machine.now + 60, machine.waited + 59
    machine.crew.pause()
    machine.work(1)
    assert machine.sizes == [2]


def test_team_stays_whole_where_the_system_does_not_tell() -> None:
    machine = Machine(2)
    machine.told = False
    machine.neighbours = 2
    machine.work(5)
    assert machine.sizes == [2]


@contextmanager
def busy(*cores: int) -> Iterator[None]:
    """A process that computes on these cores without end."""
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, cores)
        while True:
            pass
    try:
        yield
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="the system does not tell")
def test_waits_are_those_of_the_calling_thread_beside_a_neighbour_on_its_core() -> None:
    core = min(os.sched_getaffinity(0))
    told = dict[str, float]()

    def compute() -> None:
        os.sched_setaffinity(0, {core})
        me, until = threading.get_native_id(), time.monotonic() + 0.5
        before = waits_for_cores()
        while time.monotonic() < until:
            pass
        after = waits_for_cores()
        told["waited"] = (after[me] - before[me]) / 1e9
        told["python's"] = len(after.keys() & {threading.main_thread().native_id})

    thread = threading.Thread(target=compute)
    with busy(core):
        thread.start()
        thread.join()
    assert 0.1 < told["waited"] <= 0.6
    assert told["python's"] == 0
