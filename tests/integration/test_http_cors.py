"""No web page of another origin may read an answer: nothing ever grants it, to whatever request."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.fakes import make_world
from tests.live import HANG_S, serving

ORIGINS = ["https://evil.example", "null", "http://localhost:3000"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> Iterator[httpx.Client]:
    world = make_world(tmp_path_factory.mktemp("world"), redis_server_url)
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


def grants(answer: httpx.Response) -> list[str]:
    return [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("path", ["/v1/tasks", "/v1/tasks/echo/generate", "/health", "/livez", "/nothing"])
def test_preflight_is_granted_nothing(client: httpx.Client, origin: str, path: str) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    answer = client.options(path, headers={"origin": origin, **asks})
    assert answer.status_code in (403, 404, 405)
    assert grants(answer) == []


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("path", ["/v1/tasks", "/health", "/metrics", "/livez", "/openapi.json", "/docs", "/nothing"])
def test_simple_request_is_granted_nothing(client: httpx.Client, origin: str, path: str) -> None:
    answer = client.get(path, headers={"origin": origin})
    assert answer.status_code in (200, 404)
    assert grants(answer) == []


@pytest.mark.parametrize("origin", ORIGINS)
def test_answer_of_a_row_is_granted_to_nobody(client: httpx.Client, origin: str) -> None:
    answer = client.post("/v1/tasks/echo/generate", json={"input": "x"}, headers={"origin": origin})
    assert answer.status_code == 403 or answer.json()["outputs"]
    assert grants(answer) == []
