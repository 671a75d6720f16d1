"""Ends the process when the engine's thread has died, or hangs in one step: nothing else could bring it back.

A deadlock in a kernel or a driver leaves a process that accepts requests and answers none. While the thread is stalled
`/livez` answers 503; `GRACE_S` later the process writes every thread's stack to stderr and leaves with `EXIT_STALLED`,
so that its supervisor (`chorus up`, Kubernetes, compose) starts it anew.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable

from app.engine.thread import EngineThread

log = logging.getLogger(__name__)

GRACE_S = 5.0
EXIT_STALLED = 70  # EX_SOFTWARE


class Watchdog:
    """Looks at the thread several times within `stall_s`; 0 never looks. `end` leaves the process."""

    def __init__(
        self, thread: EngineThread, *, stall_s: float, grace_s: float = GRACE_S, end: Callable[[], None] | None = None
    ) -> None:
        self._thread, self._stall_s, self._grace_s = thread, stall_s, grace_s
        self._end = end or _end_process
        self._stopped = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="chorus-watchdog", daemon=True)

    def start(self) -> None:
        if self._stall_s:
            self._watching.start()

    def stop(self) -> None:
        """Before the engine's thread is stopped, which would look like its death."""
        self._stopped.set()
        if self._watching.is_alive():
            self._watching.join()

    @property
    def stalled(self) -> bool:
        """Whether the thread has died or has been in one step for `stall_s` or longer."""
        if not self._stall_s or self._stopped.is_set():
            return False
        return not self._thread.alive or self._thread.busy_s >= self._stall_s

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._stall_s / 4)):
            if not self.stalled:
                continue
            state = {"alive": self._thread.alive, "busy_s": round(self._thread.busy_s, 1)}
            log.critical("the engine is stalled", extra=state)
            if not self._stopped.wait(self._grace_s) and self.stalled:
                self._end()
                return


def _end_process() -> None:
    faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr)
    os._exit(EXIT_STALLED)
