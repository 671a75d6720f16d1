"""What ties a trainer's process to its worker's: it dies when the worker does, however the worker died."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from app.settings import Settings

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies; if the parent has died already, die now. Linux only:
    elsewhere `watch_for_end` alone has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(os.EX_TEMPFAIL)


def watch_for_end(descriptor: int, act: Callable[[], None]) -> threading.Thread:
    """Call `act` once the other end of a pipe is closed, which a process does by ending in whatever way."""

    def wait() -> None:
        while os.read(descriptor, 1):  # not through a buffered reader: its lock would outlive us at exit
            continue
        act()

    thread = threading.Thread(target=wait, name="parent-watch", daemon=True)
    thread.start()
    return thread


def environment(settings: Settings) -> dict[str, str]:
    """This process's environment with `settings` written into it, for a child that reads them anew."""
    values = dict(os.environ)
    for name, value in settings.model_dump().items():
        variable = f"CHORUS_{name.upper()}"
        if value is None:
            values.pop(variable, None)
        else:
            values[variable] = str(value.absolute()) if isinstance(value, Path) else str(value)
    return values
