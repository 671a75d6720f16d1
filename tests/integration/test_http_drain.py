"""A stop that loses nothing: readiness goes first, the listener stays, what runs is finished or told why not."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
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
        assert (cut.status_code, cut.json()["error"]["code"]) == (503, "draining")
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
