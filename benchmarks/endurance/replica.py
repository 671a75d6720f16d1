"""One API process of a measurement, beside those of the service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from benchmarks.endurance.site import redis_url
from benchmarks.running import Running, free_port, wait_until_ready

SERVE = ("-m", "app", "serve")
START_S = 600.0  # on a machine whose cores are all taken


class Replica:
    """`chorus serve` on a port of its own, or another `program` of Python's like it, that can be stopped as a cluster
    stops it, and started anew. What it says goes to `log`."""

    def __init__(
        self,
        data_dir: Path,
        log: Path,
        settings: Mapping[str, str],
        *,
        program: Sequence[str] = SERVE,
    ) -> None:
        self.port = free_port()
        self._program, self._log = program, log.open("w")
        self._settings = {**settings, "CHORUS_DATA_DIR": str(data_dir), "CHORUS_PORT": str(self.port)}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it is ready."""
        environment = {**os.environ, **self._settings}
        self._process = subprocess.Popen(
            [sys.executable, *self._program], env=environment, stdout=self._log, stderr=self._log
        )
        wait_until_ready(self.url, self._process, timeout_s=START_S)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=90)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._log.close()


@contextmanager
def replicas(running: Running, programs: Sequence[Sequence[str]], **settings: str) -> Iterator[list[Replica]]:
    """One for each program, started, on the registry of a service, with data folders of their own."""
    shared = {"CHORUS_REDIS_URL": redis_url(running), "CHORUS_BLOB_DIR": str(running.data_dir / "blobs")}
    with tempfile.TemporaryDirectory(prefix="chorus-replicas-") as folder, ExitStack() as stack:
        started = []
        for number, program in enumerate(programs):
            home = Path(folder) / str(number)
            home.mkdir()
            one = Replica(home, home / "replica.log", shared | settings, program=program)
            started.append(stack.enter_context(closing(one)))
            one.start()
        yield started
