"""A stop that loses nothing: readiness goes first, the listener stays, what runs is finished or told why not."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from app.api import server as server_module
from tests.fakes import World, make_world
from tests.live import HANG_S, Live, serving, wait_until


@pytest.fixture
def world(tmp_path: Path, redis_server_url: str) -> World:
    return make_world(tmp_path, redis_server_url)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def post(live: Live, text: str, *, stream: bool = False) -> httpx.Response:
    body = {"input": text, "stream": stream}
    return httpx.post(f"{live.url}/v1/tasks/echo/generate", json=body, timeout=HANG_S)


def test_draining_server_finishes_what_runs_and_refuses_what_comes(world: World, pool: ThreadPoolExecutor) -> None:
    with serving(world.app) as live:
        running = pool.submit(post, live, "!hang")
        wait_until(lambda: world.engine.asked)
        live.server.handle_exit(signal.SIGTERM, None)
        refused, ready = post(live, "late"), httpx.get(f"{live.url}/readyz")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert "retry-after" in refused.headers
        assert (ready.status_code, httpx.get(f"{live.url}/livez").status_code) == (503, 200)
        assert httpx.get(f"{live.url}/health").json()["status"] == "draining"
        world.engine.release()
        assert running.result(HANG_S).status_code == 200
        wait_until(lambda: live.server.should_exit)


def test_idle_server_stops_at_once(world: World) -> None:
    with serving(world.app) as live:
        live.server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: live.server.should_exit, timeout_s=5)


def test_what_outlasts_the_drain_is_told_so(tmp_path: Path, redis_server_url: str, pool: ThreadPoolExecutor) -> None:
    world = make_world(tmp_path, redis_server_url, drain_s=0.3)
    with serving(world.app) as live:
        single, stream = pool.submit(post, live, "!hang"), pool.submit(post, live, "one !pause", stream=True)
        wait_until(lambda: len(world.engine.asked) == 2)
        live.server.handle_exit(signal.SIGTERM, None)
        cut = single.result(HANG_S)
        assert (cut.status_code, cut.json()["error"]["code"]) == (503, "cut_off")
        text = stream.result(HANG_S).text
        assert '"finish_reason": "drain"' in text
        assert text.endswith("data: [DONE]\n\n")


def test_second_signal_ends_at_once(world: World, pool: ThreadPoolExecutor) -> None:
    with serving(world.app) as live:
        running = pool.submit(post, live, "!hang")
        wait_until(lambda: world.engine.asked)
        live.server.handle_exit(signal.SIGTERM, None)
        assert not live.server.should_exit
        live.server.handle_exit(signal.SIGTERM, None)
        assert live.server.should_exit
        assert running.exception(HANG_S) is not None or running.result().status_code >= 500


def test_followers_of_a_job_are_let_go(world: World, pool: ThreadPoolExecutor) -> None:
    rows = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(12)]
    with serving(world.app) as live:
        job = httpx.post(f"{live.url}/v1/train", json={"task": "new", "training_data": {"inline": rows}}).json()
        url, headers = f"{live.url}/v1/train/{job['id']}/events", {"accept": "text/event-stream"}
        wait_until(lambda: not world.app.state.drain.in_flight)  # the answered call is over on the server's side too
        following = pool.submit(httpx.get, url, headers=headers, timeout=HANG_S)
        wait_until(lambda: world.app.state.drain.in_flight)
        live.server.handle_exit(signal.SIGTERM, None)
        assert following.result(HANG_S).status_code == 200
        wait_until(lambda: live.server.should_exit)


def test_head_that_does_not_arrive_ends_the_connection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEAD_S", 0.2)
    with serving(world.app) as live:
        for sent in (b"", b"GET /livez HTT", b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\nGET /li"):
            assert heard_until_closed(live, sent).count(b"HTTP/1.1 200") == sent.count(b"\r\n\r\n")


def heard_until_closed(live: Live, sent: bytes) -> bytes:
    heard = b""
    with socket.create_connection((live.host, live.port), timeout=HANG_S) as connection:
        connection.sendall(sent)
        with suppress(ConnectionResetError):
            while received := connection.recv(4096):
                heard += received
    return heard


def test_connection_that_rests_between_requests_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEAD_S", 0.1)
    with serving(world.app) as live, httpx.Client(base_url=live.url) as client:
        for _ in range(3):
            answer = client.get("/livez")
            assert answer.status_code == 200
            stream = answer.extensions["network_stream"]
            time.sleep(0.2)
            assert not stream.get_extra_info("is_readable")


def test_taken_address_is_said_with_the_remedy(world: World) -> None:
    with serving(world.app) as live, pytest.raises(server_module.AddressTaken, match="--port"):
        server_module.bind(live.host, live.port)


REQUEST = b"GET /v1/tasks HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"


def drained_with(
    live: Live, monkeypatch: pytest.MonkeyPatch, just_before: Callable[[], None], *, turns: int = 0
) -> None:
    """Drain and end the server; `just_before` runs in its loop, which takes `turns` more before it closes."""
    ended = live.server.shutdown

    async def shutdown(sockets: list[socket.socket] | None = None) -> None:
        just_before()
        for _ in range(turns):
            await asyncio.sleep(0)
        await ended(sockets)

    monkeypatch.setattr(live.server, "shutdown", shutdown)
    live.server.handle_exit(signal.SIGTERM, None)


def refusal_and_end(connection: socket.socket) -> None:
    """The connection says that the request was not taken, and then ends without a reset."""
    heard = b""
    while received := connection.recv(4096):
        heard += received
    assert heard.startswith(b"HTTP/1.1 503")
    assert b'"draining"' in heard
    assert b"\r\nconnection: close\r\n" in heard.lower()


@pytest.mark.parametrize("turns", range(5))
def test_request_of_a_connection_that_is_being_accepted_is_told_that_the_replica_drains(
    world: World, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """However far the loop has come with it: not accepted, accepted, its protocol made, its request read."""
    arrived: list[socket.socket] = []
    with serving(world.app) as live:

        def connect() -> None:
            arrived.append(socket.create_connection((live.host, live.port), timeout=HANG_S))
            arrived[0].sendall(REQUEST)

        drained_with(live, monkeypatch, connect, turns=turns)
        wait_until(lambda: arrived)
        with arrived[0] as connection:
            refusal_and_end(connection)


def test_client_who_connects_while_the_listener_closes_is_refused_before_he_has_asked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who connected after all were taken, and before the listener is closed, would be reset with his request sent."""
    real, tried = server_module._accepted, []

    def accepted(listener: socket.socket) -> Iterator[socket.socket]:
        yield from real(listener)
        with socket.socket() as late:
            late.settimeout(0.2)
            tried.append(late.connect_ex(listener.getsockname()))

    monkeypatch.setattr(server_module, "_accepted", accepted)
    with serving(world.app) as live:
        live.server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: tried)
    assert tried != [0] or not sys.platform.startswith("linux")  # elsewhere no listener can do so


def test_request_nobody_has_read_when_its_kept_connection_is_to_end_is_told_that_the_replica_drains(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(world.app) as live, socket.create_connection((live.host, live.port), timeout=HANG_S) as connection:
        connection.sendall(REQUEST)
        heard = b""
        while not heard.endswith(b"}"):
            heard += connection.recv(4096)
        assert heard.startswith(b"HTTP/1.1 200")

        def ask_and_end() -> None:
            connection.sendall(REQUEST)
            for one in live.server.server_state.connections:
                one.shutdown()

        drained_with(live, monkeypatch, ask_and_end)
        refusal_and_end(connection)


def test_kept_connection_that_rests_when_a_drain_without_time_ends_gets_to_ask(
    tmp_path: Path, redis_server_url: str
) -> None:
    world = make_world(tmp_path, redis_server_url, drain_s=0)
    with serving(world.app) as live, socket.create_connection((live.host, live.port), timeout=HANG_S) as connection:
        connection.sendall(REQUEST)
        heard = b""
        while not heard.endswith(b"}"):
            heard += connection.recv(4096)
        live.server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: not live.server.servers[0].is_serving())
        time.sleep(0.2)  # all connections have been told to end by then
        connection.sendall(REQUEST)
        refusal_and_end(connection)


def test_connection_that_is_new_when_the_listener_closes_gets_to_ask(world: World) -> None:
    with serving(world.app) as live, socket.create_connection((live.host, live.port), timeout=HANG_S) as connection:
        wait_until(lambda: live.server.server_state.connections)
        live.server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: not live.server.servers[0].is_serving())
        connection.sendall(REQUEST)
        refusal_and_end(connection)


def test_connection_that_never_asks_does_not_hold_up_the_end(world: World) -> None:
    began = time.monotonic()
    with serving(world.app) as live, socket.create_connection((live.host, live.port), timeout=HANG_S) as connection:
        wait_until(lambda: live.server.server_state.connections)
        live.server.handle_exit(signal.SIGTERM, None)
        assert connection.recv(1) == b""
    assert time.monotonic() - began < HANG_S / 2


def test_kept_connection_ends_with_its_first_answer_of_a_drain(world: World) -> None:
    with serving(world.app) as live, httpx.Client(base_url=live.url) as client:
        assert "connection" not in client.get("/livez").headers
        world.app.state.drain.begin()
        world.app.state.drain.limit_s = HANG_S
        assert client.get("/livez").headers["connection"] == "close"
