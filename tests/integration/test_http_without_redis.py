"""Redis goes away or hangs: what is known is answered on, what would change something says so, a cold start works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings
from prompt_store import PromptStore
from tests.fakes import FakeBackbone, FakeEngineService, publish
from tests.live import HANG_S, Live, serving, wait_until
from tests.redis_server import RedisServer
from tests.s3 import S3Server

ROWS = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(12)]


@pytest.fixture
def settings(tmp_path: Path, server: RedisServer) -> Settings:
    publish(PromptStore.open(server.url, tmp_path / "blobs"), FakeBackbone(), "echo", "{text}")
    return Settings(data_dir=tmp_path, redis_url=server.url, reconcile_s=0.2)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty prefix on a server that speaks S3's protocol."""
    with S3Server() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield f"s3://{running.bucket}/prompts"


def service(settings: Settings) -> FastAPI:
    return create_app(settings, backbone=FakeBackbone(), engine=FakeEngineService())  # type: ignore[arg-type]


def answers(live: Live, headers: dict[str, str] | None = None) -> bool:
    asked = {"json": {"input": "hello"}, "headers": headers, "timeout": HANG_S}
    answer = httpx.post(f"{live.url}/v1/tasks/echo/generate", **asked)  # type: ignore[arg-type]
    return answer.status_code == 200 and answer.json()["outputs"][0]["text"] == "hello"


def degraded(live: Live) -> bool:
    answer = httpx.get(f"{live.url}/readyz", timeout=HANG_S)
    assert answer.status_code == 200
    return bool(answer.json()["degraded"])


AWAY = [
    pytest.param(RedisServer.kill, RedisServer.start, id="killed"),
    pytest.param(RedisServer.freeze, RedisServer.thaw, id="hung"),
]
AWAY_TWICE = [AWAY[0], pytest.param(RedisServer.freeze, RedisServer.thaw, id="hung", marks=pytest.mark.slow)]
"""Where a test starts a replica twice beside it: a start beside one that hangs takes its time."""

Act = Callable[[RedisServer], None]


@pytest.mark.parametrize(("leave", "come_back"), AWAY)
def test_known_tasks_are_answered_on_and_changes_are_refused_until_it_is_back(
    settings: Settings, server: RedisServer, leave: Act, come_back: Act
) -> None:
    with serving(service(settings)) as live:
        assert answers(live)
        leave(server)
        wait_until(lambda: degraded(live))
        assert answers(live)
        for method, path, body in [
            ("PUT", "/v1/tasks/new", {"fields": ["text"]}),
            ("PUT", "/v1/tasks/echo/aliases/prod", {"version": 1}),
            ("POST", "/v1/train", {"task": "new", "training_data": {"inline": ROWS}}),
            ("GET", "/v1/train", None),
        ]:
            refused = httpx.request(method, f"{live.url}{path}", json=body, timeout=HANG_S)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable"), path
            assert "retry-after" in refused.headers
        come_back(server)
        wait_until(lambda: not degraded(live))
        created = httpx.put(f"{live.url}/v1/tasks/new", json={"fields": ["text"]}, timeout=HANG_S)
        assert created.status_code == 201


@pytest.mark.parametrize(("leave", "come_back"), AWAY)
def test_cold_start_without_redis_answers_from_the_manifest(
    settings: Settings, server: RedisServer, leave: Act, come_back: Act
) -> None:
    with serving(service(settings)) as live:
        assert answers(live)
    leave(server)
    with serving(service(settings)) as live:
        assert degraded(live)
        assert answers(live)
        come_back(server)
        wait_until(lambda: not degraded(live))


def test_new_replica_without_redis_answers_from_the_records_in_the_object_store(
    s3: str, server: RedisServer, tmp_path: Path
) -> None:
    """A pod of `k8s/overlays/s3` that was never there before: nothing on its disk, Redis away."""
    folders = (tmp_path / name for name in ("first", "new"))
    key = "a-key-of-some-length"
    shared: dict[str, Any] = {"redis_url": server.url, "blobs_url": s3, "reconcile_s": 0.2, "api_key": key}
    first, new = (Settings(data_dir=one, **shared) for one in folders)
    headers = {"authorization": f"Bearer {key}"}
    with PromptStore.open(server.url, first.blobs, blobs_url=s3) as store:
        for template in ("{text}", "Again: {text}"):
            publish(store, FakeBackbone(), "echo", template)
        store.move_alias("echo", "prod", 1, expected=2)
    server.kill()
    with serving(service(new)) as live:
        assert degraded(live)
        for ref, version in {"echo": 1, "echo@2": 2}.items():
            path = f"{live.url}/v1/tasks/{ref}/generate"
            answer = httpx.post(path, json={"input": "hello"}, headers=headers, timeout=HANG_S)
            assert answer.status_code == 200, answer.text
            assert answer.json()["outputs"][0]["version"] == version
        refused = httpx.put(f"{live.url}/v1/tasks/new", json={"fields": ["text"]}, headers=headers, timeout=HANG_S)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
        server.start()
        wait_until(lambda: not degraded(live))
        assert answers(live, headers)


@pytest.mark.parametrize(("leave", "come_back"), AWAY_TWICE)
def test_replica_that_never_read_the_keys_answers_nobody_until_redis_is_there(
    settings: Settings, server: RedisServer, tmp_path: Path, leave: Act, come_back: Act
) -> None:
    """On loopback and without a key, as `chorus up` serves; whether keys were made only Redis can tell."""
    new = settings.model_copy(update={"data_dir": tmp_path / "new", "blob_dir": settings.blobs})
    leave(server)
    with serving(service(new)) as live:
        for headers in ({}, {"authorization": f"Bearer ck_{'0' * 12}_{'0' * 64}"}):
            for method, path in (("GET", "/v1/tasks"), ("DELETE", "/v1/tasks/echo"), ("GET", "/metrics")):
                refused = httpx.request(method, f"{live.url}{path}", headers=headers, timeout=HANG_S)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
                assert "retry-after" in refused.headers
        assert httpx.get(f"{live.url}/livez", timeout=HANG_S).status_code == 200
        come_back(server)
        wait_until(lambda: httpx.get(f"{live.url}/v1/tasks", timeout=HANG_S).status_code == 200)
        leave(server)
        wait_until(lambda: degraded(live))
        assert answers(live), "what was read holds"
    with serving(service(new)) as live:
        assert answers(live), "for the next start, too"
        come_back(server)


def test_cold_start_without_redis_manifest_and_records_is_alive_but_not_ready(
    server: RedisServer, tmp_path: Path
) -> None:
    server.kill()
    with serving(service(Settings(data_dir=tmp_path, redis_url=server.url, reconcile_s=0.2))) as live:
        assert httpx.get(f"{live.url}/livez").status_code == 200
        ready = httpx.get(f"{live.url}/readyz", timeout=HANG_S)
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "not_ready")
        asked = httpx.post(f"{live.url}/v1/tasks/echo/generate", json={"input": "x"}, timeout=HANG_S)
        assert (asked.status_code, asked.json()["error"]["code"]) == (503, "store_unavailable")
        server.start()
        wait_until(lambda: httpx.get(f"{live.url}/readyz").status_code == 200)
        with PromptStore.open(server.url, tmp_path / "blobs") as store:
            publish(store, FakeBackbone(), "echo", "{text}")
        wait_until(lambda: answers(live))
