"""A real server on a free port, in a thread of this process: real sockets, real HTTP, no second process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi import FastAPI

from app.api.server import Server, bind, server_config

HANG_S = 30.0  # a test that waits this long has found a hang


@dataclass
class Live:
    host: str
    port: int
    server: Server

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@contextmanager
def serving(app: FastAPI, port: int = 0) -> Iterator[Live]:
    """Serve `app` on a port, or a free one, until the block ends. What a drain leaves over is cut off as
    `app.main.serve` does."""
    listener = bind("127.0.0.1", port)

    async def cut_off() -> None:
        await app.state.services.engine.stop(0)

    server = Server(server_config(app), app.state.drain, cut_off, listener)
    thread = threading.Thread(target=server.run, name="live server")
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        assert server.started, "the server did not start"
        host, port = listener.getsockname()[:2]
        yield Live(host, port, server)
    finally:
        server.should_exit = True
        thread.join(HANG_S)
        assert not thread.is_alive(), "the server did not stop"


def wait_until(true: object, *, timeout_s: float = HANG_S) -> None:
    """Poll a callable until it holds; fails after `timeout_s`."""
    assert callable(true)
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)
