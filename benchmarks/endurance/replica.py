"""One API process of a measurement, beside those of the service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.running import free_port, wait_until_ready

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
        program: Sequence[str] = ("-m", "app", "serve"),
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
