"""A process that helps a trainer with its steps: `python -m app.training.follow`, started by the trainer.

It loads the same model on a device of its own and computes its share of the gradients (parallel.py). It knows no job,
no Redis and no registry, and ends with the trainer that started it, however that ends.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

import torch

from app.backbone.placement import device_of
from app.settings import Settings
from app.telemetry import configure_logging
from app.training.loading import load_for_training
from app.training.parallel import follow, join
from app.training.process import die_with_parent, environment, watch_for_end

log = logging.getLogger("app.training")


class Followers:
    """The processes beside a trainer; `port` is where they meet. Where one ends before `release`, so does this
    process: the attempt is over, as if it had crashed."""

    def __init__(self, settings: Settings) -> None:
        self.processes = settings.train_processes
        self.port = _free_port()
        self._released = threading.Event()
        self._started = [self._start(settings, rank) for rank in range(1, self.processes)]
        for child in self._started:
            threading.Thread(target=self._watch, args=(child,), name="follower-watch", daemon=True).start()

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self._started]

    def release(self) -> None:
        """They may end now."""
        self._released.set()

    def wait(self, timeout: float) -> None:
        for child in self._started:
            child.wait(timeout)

    def _start(self, settings: Settings, rank: int) -> subprocess.Popen[bytes]:
        device = device_of(settings.device, rank, self.processes)
        own = settings.model_copy(update={"device": str(device)})
        command = [sys.executable, "-m", "app.training.follow", "--rank", str(rank), "--port", str(self.port)]
        return subprocess.Popen([*command, "--parent", str(os.getpid())], env=environment(own), stdin=subprocess.PIPE)

    def _watch(self, child: subprocess.Popen[bytes]) -> None:
        code = child.wait()
        if not self._released.is_set():
            log.error("a process of this job ended with %d; the attempt ends with it", code)
            os._exit(os.EX_SOFTWARE)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m app.training.follow", description="Help a trainer with its steps.")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    watch_for_end(sys.stdin.fileno(), lambda: os._exit(os.EX_TEMPFAIL))
    for one in (signal.SIGINT, signal.SIGTERM):  # the trainer decides
        signal.signal(one, signal.SIG_IGN)
    settings = Settings.model_validate({})
    configure_logging(settings.log_level, settings.log_format)
    torch.set_num_threads(max(1, settings.cpu_threads // 2 // settings.train_processes))
    backbone = load_for_training(settings)
    join(options.rank, settings.train_processes, options.port)
    follow(backbone)
    return os.EX_OK


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


if __name__ == "__main__":
    raise SystemExit(main())
