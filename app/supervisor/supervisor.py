"""Keeps several processes running together: starts them in order, restarts what dies, stops them in order.

It knows nothing of what they do. One thread, one loop; signals only set a counter that the loop reads.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from app.supervisor.backoff import Backoff
from app.supervisor.child import Child, describe_exit

TICK_S = 0.05
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Say = Callable[[str], None]


class GaveUp(Exception):
    """A process failed again and again; `lines` are the last it wrote."""

    def __init__(self, child: Child, status: int, lines: Sequence[str]) -> None:
        super().__init__(f"{child.spec.title} does not stay up ({describe_exit(status)})")
        self.child = child
        self.lines = list(lines)


@dataclass
class _Slot:
    child: Child
    backoff: Backoff = field(default_factory=Backoff)
    ready: bool = False
    restart_at: float | None = None

    def start(self) -> None:
        self.restart_at = None
        self.ready = False
        self.child.start()
        self.ready = self.child.spec.ready is None

    def check_ready(self) -> None:
        if not self.ready and self.child.spec.ready is not None:
            self.ready = self.child.spec.ready()


class Supervisor:
    """Runs `children`, each started when the one before it is ready, and stops them as `stop_order` says."""

    def __init__(
        self,
        children: Sequence[Child],
        say: Say,
        *,
        stop_order: Sequence[Child] | None = None,
        on_start: Callable[[Child], None] = lambda _child: None,
    ) -> None:
        self._on_start = on_start
        self._slots = [_Slot(child) for child in children]
        self._stop_order = list(reversed(children) if stop_order is None else stop_order)
        assert sorted(map(id, self._stop_order)) == sorted(map(id, children))
        self._say = say
        self._stops = 0

    def request_stop(self) -> None:
        """Ask for an orderly stop; a second request ends everything at once."""
        self._stops += 1

    @property
    def forced(self) -> bool:
        return self._stops > 1

    def run(self, on_ready: Callable[[], None]) -> None:
        """Run until a stop is requested. `on_ready` is called once, when all are ready. Raises GaveUp."""
        try:
            self._start_all()
            self._run_until_stopped(on_ready)
        finally:
            self._stop_all()

    def _start_all(self) -> None:
        for slot in self._slots:
            if self._stops:
                return
            self._on_start(slot.child)
            slot.start()
            deadline = time.monotonic() + slot.child.spec.ready_s
            while not slot.ready and not self._stops:
                self._tick()
                if time.monotonic() > deadline:
                    self._say(f"{slot.child.spec.title} is not ready yet; its log: {slot.child.log.path}")
                    break

    def _run_until_stopped(self, on_ready: Callable[[], None]) -> None:
        announced = False
        while not self._stops:
            self._tick()
            if not announced and all(slot.ready for slot in self._slots):
                announced = True
                on_ready()

    def _tick(self) -> None:
        for slot in self._slots:
            if slot.child.started_at:
                self._look_after(slot)
        time.sleep(TICK_S)

    def _look_after(self, slot: _Slot) -> None:
        status = slot.child.returncode
        if status is None:
            slot.check_ready()
        elif slot.restart_at is None:
            self._plan_restart(slot, status)
        elif time.monotonic() >= slot.restart_at:
            slot.start()

    def _plan_restart(self, slot: _Slot, status: int) -> None:
        child = slot.child
        child.kill()  # what it started must not outlive it
        lived_s = time.monotonic() - child.started_at
        delay = slot.backoff.next_delay(status=status, lived_s=lived_s, was_ready=slot.ready)
        if delay is None:
            raise GaveUp(child, status, child.read_last_words())
        slot.ready = False
        slot.restart_at = time.monotonic() + delay
        self._say(f"{child.spec.title} ended ({describe_exit(status)}); starting it again in {delay:g} s")

    def _stop_all(self) -> None:
        for child in self._stop_order:
            if child.pid is not None and not self.forced:
                self._stop(child)
        for child in self._stop_order:
            child.kill()

    def _stop(self, child: Child) -> None:
        self._say(f"Stopping {child.spec.title} …")
        child.terminate()
        deadline = time.monotonic() + child.spec.stop_s
        while child.pid is not None and not self.forced:
            if time.monotonic() > deadline:
                self._say(f"{child.spec.title} did not stop within {child.spec.stop_s:g} s; ending it")
                return
            time.sleep(TICK_S)


@contextmanager
def stop_on_signals(supervisor: Supervisor) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into stop requests while the block runs."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        supervisor.request_stop()

    # under nohup a closed terminal is to be survived
    wanted = [n for n in STOP_SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
