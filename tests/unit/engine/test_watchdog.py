"""An engine that hangs or dies ends its process; one that is idle or merely slow does not."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from app.engine.watchdog import EXIT_STALLED, Watchdog

STALL_S = 0.2


class FakeThread:
    alive = True
    busy_s = 0.0


def watch(thread: FakeThread, *, seconds: float = 1.0, stall_s: float = STALL_S) -> tuple[bool, Watchdog]:
    """Whether the watchdog ended the process within `seconds`."""
    ended = threading.Event()
    dog = Watchdog(thread, stall_s=stall_s, grace_s=0.05, end=ended.set)  # type: ignore[arg-type]
    dog.start()
    found = ended.wait(seconds)
    return found, dog


def changed(**facts: Any) -> FakeThread:
    thread = FakeThread()
    for name, value in facts.items():
        setattr(thread, name, value)
    return thread


@pytest.mark.parametrize("thread", [changed(alive=False), changed(busy_s=STALL_S)], ids=["died", "hangs"])
def test_thread_that_died_or_hangs_ends_the_process(thread: FakeThread) -> None:
    ended, dog = watch(thread, seconds=10)
    assert ended
    assert dog.stalled


def test_thread_that_works_or_rests_is_left_alone() -> None:
    ended, dog = watch(changed(busy_s=STALL_S / 2), seconds=0.5)
    assert not ended
    assert not dog.stalled
    dog.stop()


def test_step_that_ends_within_the_grace_time_is_forgiven() -> None:
    ended = threading.Event()
    thread = changed(busy_s=STALL_S)
    dog = Watchdog(thread, stall_s=STALL_S, grace_s=0.3, end=ended.set)  # type: ignore[arg-type]
    dog.start()
    time.sleep(0.15)
    thread.busy_s = 0.0
    assert not ended.wait(0.6)
    dog.stop()


def test_stopped_watchdog_lets_the_thread_end() -> None:
    thread = changed()
    _, dog = watch(thread, seconds=0)
    dog.stop()
    thread.alive = False
    assert not dog.stalled


def test_watchdog_without_a_limit_never_looks() -> None:
    ended, dog = watch(changed(alive=False), seconds=0.2, stall_s=0)
    assert not ended
    assert not dog.stalled
    dog.stop()


HANGING = """
import time
from app.engine.thread import EngineThread
from app.engine.watchdog import Watchdog

class Engine:
    idle = False
    def step(self):
        time.sleep(60)

thread = EngineThread(Engine(), lambda steps: None, threads=0)
thread.start()
Watchdog(thread, stall_s=0.3, grace_s=0.1).start()
time.sleep(60)
"""


def test_process_whose_engine_hangs_in_a_step_leaves_with_every_stack() -> None:
    done = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == EXIT_STALLED
    assert "in step" in done.stderr
