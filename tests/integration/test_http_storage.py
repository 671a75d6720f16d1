"""A full disk over HTTP: what would write is refused with its reason, and everything else is answered on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes import World, make_world
from tests.full_disk import refuse_writes
from tests.live import HANG_S, serving

ROWS = [{"text": f"{word} number {n}", "label": word} for n in range(10) for word in ("good", "bad")]
JSONL = "\n".join(json.dumps(row) for row in ROWS).encode()


@pytest.fixture
def world(tmp_path: Path, redis_url: str) -> World:
    return make_world(tmp_path, redis_url)


@pytest.fixture
def client(world: World) -> Iterator[httpx.Client]:
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


def test_full_disk_refuses_what_would_write_and_answers_the_rest(
    world: World, client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refuse_writes(patch, tmp_path)
        for answer in (
            client.put("/v1/tasks/new", json={"fields": ["text"]}),
            client.put("/v1/tasks/echo/aliases/canary", json={"version": 1}),
            client.put("/v1/datasets/rows", content=JSONL, headers={"content-type": "application/jsonl"}),
            client.post("/v1/train", json={"task": "trained", "training_data": {"inline": ROWS}}),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full"), answer.request.url
            assert answer.json()["error"]["type"] == "unavailable_error"
            assert str(tmp_path) not in answer.text
        assert client.post("/v1/tasks/echo/generate", json={"input": "hello"}).status_code == 200
        assert client.get("/v1/train").json()["data"] == []
        assert client.get("/v1/datasets").json()["data"] == []
    assert client.put("/v1/tasks/newer", json={"fields": ["text"]}).status_code == 201
    upload = client.put("/v1/datasets/rows", content=JSONL, headers={"content-type": "application/jsonl"})
    assert upload.status_code in (200, 201)
    trained = client.post("/v1/train", json={"task": "trained", "training_data": {"inline": ROWS}})
    assert trained.status_code == 202
    assert world.store.fsck().ok or world.store.rebuild().ok
