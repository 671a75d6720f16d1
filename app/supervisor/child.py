"""One supervised process: how to start it tied to our life, ask it to stop, and make sure that it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from app.supervisor.logs import ProcessLog

LAUNCHER = Path(__file__).with_name("launcher.py")
KERNEL_TIES = sys.platform.startswith("linux")  # elsewhere the launcher stays as a keeper that watches a pipe


@dataclass(frozen=True)
class ChildSpec:
    """What to run and what is expected of it.

    `ready` is asked until it first says yes; a spec without one counts as ready once started. `stop_s` is the grace
    between SIGTERM and SIGKILL. `inherit_fds` stay open in the process.
    """

    name: str
    title: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], bool] | None = None
    ready_s: float = 10.0
    stop_s: float = 10.0
    inherit_fds: tuple[int, ...] = ()


class Child:
    """A process of `spec`, started any number of times. Start it from the main thread only.

    The kernel ties a child to the *thread* that forked it; the main thread is the one that lives as long as we do.
    """

    def __init__(self, spec: ChildSpec, log: ProcessLog, *, kernel_ties: bool = KERNEL_TIES) -> None:
        self.spec = spec
        self.log = log
        self.started_at = 0.0
        self._kernel_ties = kernel_ties
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._pump: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the running process (of its keeper where the kernel has no ties); None when not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def returncode(self) -> int | None:
        """Exit status of the last run, negative for a signal; None while running or never started."""
        return self._process.poll() if self._process is not None else None

    def start(self) -> None:
        if self.pid is not None:
            raise RuntimeError(f"{self.spec.name} is already running")
        read_end, write_end = (-1, -1) if self._kernel_ties else os.pipe()
        fds = self.spec.inherit_fds + ((read_end,) if read_end >= 0 else ())
        launch = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), str(read_end), *self.spec.argv]
        try:
            self._process = subprocess.Popen(
                launch,
                env={**os.environ, **self.spec.env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=fds,
                start_new_session=True,  # a Ctrl-C in the terminal is ours to pass on, in order
            )
        finally:
            if read_end >= 0:
                os.close(read_end)
        self._drop_lifeline()
        self.log.tail.clear()
        self._lifeline = write_end
        self.started_at = time.monotonic()
        assert self._process.stdout is not None
        self._pump = self.log.follow(self._process.stdout)

    def terminate(self) -> None:
        """Ask it to stop (SIGTERM)."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End it, and all that is left of its process group, now."""
        if self._process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._drop_lifeline()
        self.read_last_words()  # the pipe ends with its writers: nothing of ours stays open

    def wait(self, timeout_s: float) -> bool:
        """True once it has ended; False when it has not within `timeout_s`."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def read_last_words(self, timeout_s: float = 1.0) -> list[str]:
        """The last lines of an ended process, all of them read."""
        if self._pump is not None:
            self._pump.join(timeout_s)
        return list(self.log.tail)

    def _drop_lifeline(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


def describe_exit(status: int) -> str:
    """An exit status in words: `exit status 1`, `killed by SIGKILL`."""
    if status >= 0:
        return f"exit status {status}"
    with suppress(ValueError):
        return f"killed by {signal.Signals(-status).name}"
    return f"killed by signal {-status}"
