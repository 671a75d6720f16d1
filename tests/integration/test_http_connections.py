"""Connections that nobody reads from, and more connections than there may be, on bare sockets beside honest callers."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api import closing, connections
from app.api.body import EdgeLimits
from app.api.connections import RESERVE, SPARES, most_by_descriptors
from tests.fakes import World, make_world
from tests.live import HANG_S, Live, serving, wait_until

SEND_S = 0.5
TEXT = " ".join(["a" * 400] * 20_000)
"""Makes a stream of 8 MB: more than the buffers of both systems hold."""
MOST = 3


def ask(path: str, *fields: str, **body: Any) -> bytes:
    data = json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json", *fields]
    return "\r\n".join([*head, f"content-length: {len(data)}", "", ""]).encode() + data


def connect(live: Live, *, buffer: int = 4096) -> socket.socket:
    """A client whose system takes little that it has not read."""
    wire = socket.socket()
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    wire.settimeout(HANG_S)
    wire.connect((live.host, live.port))
    return wire


def open_connections(world: World) -> int:
    found: int = world.app.state.connections.open
    return found


def answers(live: Live) -> bool:
    asked = httpx.post(f"{live.url}/v1/tasks/echo/generate", json={"input": "hello"}, timeout=HANG_S)
    return asked.status_code == 200 and asked.json()["outputs"][0]["text"] == "hello"


@pytest.fixture
def world(tmp_path: Path, redis_url: str) -> World:
    return make_world(tmp_path, redis_url, limits=EdgeLimits(send_s=SEND_S), max_body_bytes=16 << 20)


@pytest.fixture
def live(world: World) -> Iterator[Live]:
    with serving(world.app) as live:
        yield live


@pytest.fixture
def rows_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each stream that the engine has let go of: whether it was answered to its end."""
    ended: list[bool] = []
    stream = world.engine.stream

    async def watched(*args: Any, **options: Any) -> AsyncGenerator[Any, None]:
        whole = False
        try:
            async for one in stream(*args, **options):
                yield one
            whole = True
        finally:
            ended.append(whole)

    monkeypatch.setattr(world.engine, "stream", watched)
    return ended


def test_reader_that_stalls_loses_row_and_connection_and_its_neighbours_nothing(
    world: World, live: Live, rows_ended: list[bool]
) -> None:
    with connect(live) as wire, httpx.Client(base_url=live.url, timeout=HANG_S) as neighbour:
        wire.sendall(ask("/v1/tasks/echo/generate", input=TEXT, stream=True))
        assert wire.recv(12, socket.MSG_PEEK | socket.MSG_WAITALL) == b"HTTP/1.1 200"
        began, answered = time.monotonic(), 0
        while not answered or open_connections(world) > 1:  # the neighbour keeps its own
            asked = neighbour.post("/v1/tasks/echo/generate", json={"input": "hello"})
            assert asked.json()["outputs"][0]["text"] == "hello"
            answered += 1
            assert time.monotonic() - began < SEND_S + 10
        wait_until(lambda: rows_ended == [False])
        wait_until(lambda: world.app.state.drain.in_flight == 0)
        assert was_reset(wire)


def test_connection_sends_what_it_has_without_waiting_for_acknowledgements(live: Live) -> None:
    with connect(live) as wire:
        wire.sendall(b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert wire.recv(100).startswith(b"HTTP/1.1 200")
        (served,) = live.server.server_state.connections
        accepted = served.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_reader_that_is_slow_but_reads_gets_all_of_its_stream(world: World, live: Live, rows_ended: list[bool]) -> None:
    with connect(live) as wire:
        wire.sendall(ask("/v1/tasks/echo/generate", "connection: close", input=TEXT[: len(TEXT) // 10], stream=True))
        read = b""
        while piece := wire.recv(1 << 14):
            read += piece
            time.sleep(0.01)
    assert b"data: [DONE]" in read
    assert rows_ended == [True]


def test_whole_answer_that_nobody_reads_does_not_keep_its_connection(
    world: World, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is out before anybody notices; it is the closing that would wait for ever."""
    monkeypatch.setattr(closing, "STALL_S", SEND_S)
    with connect(live) as wire:
        wire.sendall(ask("/v1/tasks/echo/generate", "connection: close", input="a" * (12 << 20)))
        assert wire.recv(12, socket.MSG_PEEK | socket.MSG_WAITALL) == b"HTTP/1.1 200"
        wait_until(lambda: open_connections(world) == 0, timeout_s=10)


def test_whole_answer_that_is_read_slowly_is_read_to_its_end(
    world: World, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "STALL_S", 0.5)
    size, read = 8 << 20, 0
    began = time.monotonic()
    with connect(live, buffer=1 << 18) as wire:
        wire.sendall(ask("/v1/tasks/echo/generate", "connection: close", input="a" * size))
        while piece := wire.recv(1 << 17):
            read += len(piece)
            time.sleep(0.02)
    assert read > size
    assert time.monotonic() - began > 1.0


@pytest.fixture
def narrow(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[World, Live]]:
    """A service that takes `MOST` connections and two spare ones."""
    monkeypatch.setattr(connections, "SPARES", 2)
    world = make_world(tmp_path, redis_url, max_connections=MOST)
    with serving(world.app) as live:
        yield world, live


def test_connections_beyond_the_bound_are_told_so_and_those_within_are_answered(narrow: tuple[World, Live]) -> None:
    world, live = narrow
    with ExitStack() as stack:
        kept = [stack.enter_context(connect(live)) for _ in range(MOST)]
        wait_until(lambda: open_connections(world) == MOST)
        refused = httpx.get(f"{live.url}/v1/tasks", timeout=HANG_S)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_connections")
        assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "1")
        probe = httpx.get(f"{live.url}/livez", timeout=HANG_S)
        assert (probe.status_code, probe.headers["connection"]) == (200, "close")
        metrics = httpx.get(f"{live.url}/metrics", timeout=HANG_S).text
        assert f"chorus_http_connections {MOST + 1}.0" in metrics
        assert "chorus_http_connections_refused_total 3.0" in metrics
        for wire in kept:
            wire.sendall(ask("/v1/tasks/echo/generate", input="still here"))
            assert wire.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"
    wait_until(lambda: open_connections(world) == 0)
    assert httpx.get(f"{live.url}/v1/tasks", timeout=HANG_S).status_code == 200


def test_connections_beyond_the_spare_ones_are_closed_at_once(narrow: tuple[World, Live]) -> None:
    world, live = narrow
    with ExitStack() as stack:
        for _ in range(MOST + 2):
            stack.enter_context(connect(live))
        wait_until(lambda: open_connections(world) == MOST + 2)
        for _ in range(20):
            with connect(live) as wire:
                assert closed(wire)
        wait_until(lambda: open_connections(world) == MOST + 2)
    wait_until(lambda: open_connections(world) == 0)
    assert answers(live)


def was_reset(wire: socket.socket) -> bool:
    """Whether it ends so, and not as if all had been said."""
    try:
        while wire.recv(1 << 20):
            pass
    except ConnectionResetError:
        return True
    return False


def closed(wire: socket.socket) -> bool:
    try:
        return wire.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    ("files", "most"),
    [(1024, 1024 - RESERVE), (64, 32), (1, 1), (1 << 20, connections.MOST), (resource.RLIM_INFINITY, connections.MOST)],
)
def test_bound_follows_the_limit_of_open_files(monkeypatch: pytest.MonkeyPatch, files: int, most: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert most_by_descriptors() == most
    assert SPARES < RESERVE
