"""A running service for benchmarks: `chorus up` on a free port with a data folder of its own, stopped at the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx


@dataclass(frozen=True)
class Running:
    """`url` of the API, `data_dir` of the service, `process` id of `chorus up`."""

    url: str
    data_dir: Path
    process: int


@contextmanager
def running_service(data_dir: Path | None = None, **environment: str) -> Iterator[Running]:
    """Start `chorus up`, wait until it is ready, stop it with SIGINT. Without `data_dir` its state is thrown away."""
    with tempfile.TemporaryDirectory(prefix="chorus-bench-") as scratch:
        folder = data_dir or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        log = (folder / "bench.log").open("w")
        command = [sys.executable, "-m", "app", "up", "--port", str(port), "--data-dir", str(folder)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment})
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until_ready(url, process)
            yield Running(url, folder, process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, process: subprocess.Popen[bytes], *, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the service ended with {process.returncode} before it was ready")
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the service was not ready within {timeout_s} s")


def wait_for_job(client: httpx.Client, job_id: str, *, timeout_s: float = 7200, report: bool = True) -> dict[str, Any]:
    """Poll a training job to its end; prints its progress about every ten seconds."""
    deadline = time.monotonic() + timeout_s
    shown = 0.0
    while time.monotonic() < deadline:
        job = checked(client.get(f"/v1/train/{job_id}"))
        if job["status"] in ("succeeded", "failed", "cancelled"):
            return job
        if report and time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(f"    {job['status']}: {job['progress']}", flush=True)
        time.sleep(0.2)
    raise TimeoutError(f"job {job_id} did not end within {timeout_s} s")


def checked(answer: httpx.Response) -> dict[str, Any]:
    """The body of an answer; ends the benchmark with the service's own words when it refuses."""
    if answer.is_error:
        raise SystemExit(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text}")
    body: dict[str, Any] = answer.json()
    return body
