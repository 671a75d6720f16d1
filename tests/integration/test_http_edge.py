"""What stands in front of the routes: the key, health, metrics, the pages, the contract, the one shape everywhere."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from app.api.application import ROUTERS
from app.api.auth import OPEN_PATHS
from app.api.faults import UnsafeExposure
from app.api.server import AddressTaken, bind
from app.errors import ChorusError, EngineFailure, StoreDown, UnsupportedBackbone
from app.main import create_app, serve
from app.settings import Settings
from tests.fakes import SECRET, World, make_world
from tests.live import HANG_S, serving, wait_until

KEY = "a-key-of-some-length"
SHAPE = {"code", "message", "param", "type", "request_id"}
STATIC = Path(__file__).resolve().parents[2] / "app" / "api" / "static"
CONTRACT = {
    "/v1/tasks/{ref}/generate": {"post"},
    "/v1/generate": {"post"},
    "/v1/completions": {"post"},
    "/v1/models": {"get"},
    "/v1/models/{model}": {"get"},
    "/v1/tasks": {"get"},
    "/v1/tasks/{task}": {"get", "put", "delete"},
    "/v1/tasks/{task}/versions": {"get", "post"},
    "/v1/tasks/{task}/versions/{number}": {"get", "delete"},
    "/v1/tasks/{task}/versions/{number}/vectors": {"get"},
    "/v1/tasks/{task}/versions/{number}/leave-one-out": {"post"},
    "/v1/tasks/{task}/versions/{number}/adapter": {"get"},
    "/v1/tasks/{task}/aliases/{alias}": {"get", "put", "delete"},
    "/v1/datasets": {"get"},
    "/v1/datasets/{name}": {"get", "put"},
    "/v1/train": {"get", "post"},
    "/v1/train/{id}": {"get"},
    "/v1/train/{id}/cancel": {"post"},
    "/v1/train/{id}/events": {"get"},
    "/livez": {"get"},
    "/readyz": {"get"},
    "/health": {"get"},
    "/metrics": {"get"},
}
CALLS = sorted(
    (method, route.path)
    for module in ROUTERS
    for route in module.router.routes
    if isinstance(route, APIRoute)
    for method in route.methods
)


def concrete(path: str) -> str:
    return re.sub(r"\{\w+\}", "1", path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> World:
    return make_world(tmp_path_factory.mktemp("world"), redis_server_url)


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[httpx.Client]:
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> Iterator[httpx.Client]:
    world = make_world(tmp_path_factory.mktemp("locked"), redis_server_url, api_key=KEY)
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


def check_shape(answer: httpx.Response) -> Any:
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == SHAPE
    assert error["request_id"] == answer.headers["x-request-id"]
    return error


@pytest.mark.parametrize(("method", "path"), [call for call in CALLS if call[1] not in OPEN_PATHS])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {KEY.upper()}"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": KEY},
        {"x-api-key": KEY},
    ],
    ids=["none", "wrong", "other case", "other scheme", "no scheme", "other header"],
)
def test_every_route_refuses_a_call_without_the_key(
    locked: httpx.Client, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = locked.request(method, concrete(path), headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert check_shape(answer)["code"] == "unauthorized"


def test_unknown_path_and_pages_need_the_key_too(locked: httpx.Client) -> None:
    for path in ("/nothing", "/openapi.json", "/docs/swagger-ui/swagger-ui.css", "/v1/tasks?api_key=" + KEY):
        assert locked.get(path).status_code == 401


def test_right_key_opens_and_probes_need_none(locked: httpx.Client) -> None:
    assert locked.get("/v1/tasks", headers={"authorization": f"bearer {KEY}"}).status_code == 200
    assert locked.get("/livez").status_code == 200
    assert locked.get("/readyz").status_code == 200


def test_name_of_the_server_does_not_matter_where_a_key_is_asked(locked: httpx.Client) -> None:
    headers = {"authorization": f"Bearer {KEY}", "host": "chorus.example"}
    assert locked.get("/v1/tasks", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "chorus.example"])
def test_listening_beyond_this_machine_without_a_key_refuses_to_start(host: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeExposure, match="CHORUS_API_KEY"):
        create_app(Settings(host=host, data_dir=tmp_path))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_loopback_needs_no_key(host: str, tmp_path: Path) -> None:
    create_app(Settings(host=host, data_dir=tmp_path))


@pytest.fixture
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("root_logger")
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model": "/nowhere"}, UnsupportedBackbone),
        ({"host": "0.0.0.0"}, UnsafeExposure),
        ({"port": "taken"}, AddressTaken),
        ({"redis_url": None}, StoreDown),
    ],
)
def test_what_stands_in_the_way_is_raised_before_it_listens(
    tmp_path: Path, change: dict[str, Any], error: type[ChorusError]
) -> None:
    with closing(bind("127.0.0.1", 0)) as taken:
        taken.listen()
        if change.get("port") == "taken":
            change = {"port": taken.getsockname()[1]}
        settings = {"data_dir": tmp_path, "port": 0, "redis_url": "redis://127.0.0.1:1", **change}
        with pytest.raises(error):
            serve(Settings(**settings))


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_every_path_refuses_another_method_in_the_one_shape(client: httpx.Client, method: str, path: str) -> None:
    answer = client.request("PATCH", concrete(path))
    assert answer.status_code == 405
    assert method in answer.headers["allow"].split(", ")
    assert check_shape(answer)["code"] == "method_not_allowed"


@pytest.mark.parametrize(("method", "path"), [call for call in CALLS if "{" in call[1] or call[0] in ("PUT", "POST")])
def test_every_route_fails_in_the_one_shape(client: httpx.Client, method: str, path: str) -> None:
    """Names that do not exist, and no body."""
    answer = client.request(method, concrete(path))
    assert 400 <= answer.status_code < 500
    check_shape(answer)


def test_unknown_path_is_404_in_the_one_shape(client: httpx.Client) -> None:
    assert check_shape(client.get("/nothing"))["code"] == "route_not_found"


def test_contract_is_pinned(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    methods = {path: {name for name in calls if name != "parameters"} for path, calls in paths.items()}
    assert methods == CONTRACT


def test_contract_documents_the_error_shape_and_the_key(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    assert schema["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    for path, calls in schema["paths"].items():
        for method, call in calls.items():
            assert "ErrorBody" in str(call["responses"]["4XX"]), (method, path)
            assert call["summary"], (method, path)


def test_pages_come_from_this_server_alone(client: httpx.Client) -> None:
    page = client.get("/docs")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "//" not in page.text
    for source in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert client.get(source).status_code == 200, source
    script = client.get("/docs/docs.js").text
    assert "http" not in script
    assert "validatorUrl: null" in script


def test_vendored_pages_are_the_files_that_were_checked() -> None:
    folder = STATIC / "swagger-ui"
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split() for line in lines)}
    assert set(listed) == {file.name for file in folder.iterdir()} - {"SHA256SUMS", "README.md"}
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


def test_ready_is_a_real_run_and_says_when_the_engine_fails(world: World, client: httpx.Client) -> None:
    world.engine.ready = EngineFailure(SECRET)
    try:
        wait_until(lambda: client.get("/readyz").status_code == 503)  # a good run is believed for a second
        answer = client.get("/readyz")
        assert check_shape(answer)["code"] == "not_ready"
        assert SECRET not in answer.text
        assert client.get("/livez").status_code == 200
    finally:
        world.engine.ready = None
    assert client.get("/readyz").json() == {"status": "ready", "degraded": False}


def test_process_whose_engine_is_stalled_is_not_alive(world: World, client: httpx.Client) -> None:
    assert client.get("/livez").json() == {"status": "alive", "degraded": False}
    world.engine.stalled = True
    try:
        answer = client.get("/livez")
        assert (answer.status_code, check_shape(answer)["code"]) == (503, "not_ready")
    finally:
        world.engine.stalled = False


def test_health_tells_what_runs(client: httpx.Client) -> None:
    health = client.get("/health").json()
    assert health["status"] == "ok"
    assert health["backbone"]["name"] == "fake-1m"
    assert health["engine"]["num_requests_waiting"] == 2
    assert health["registry"]["tasks"] == 3


def test_metrics_count_rows_by_registered_task_and_never_by_what_was_typed(client: httpx.Client) -> None:
    client.post("/v1/tasks/echo/generate", json={"inputs": ["one two", "!failure"]})
    client.post("/v1/tasks/madeup/generate", json={"input": "x"})
    client.get("/madeup-path")
    text = client.get("/metrics").text
    assert 'chorus_request_success_total{finished_reason="stop",task="echo"} 1.0' in text
    assert 'chorus_request_failure_total{code="engine_failure"} 1.0' in text
    assert 'chorus_generation_tokens_total{task="echo"} 2.0' in text
    assert "chorus_num_requests_running 1.0" in text
    assert 'route="/v1/tasks/{ref}/generate"' in text
    assert "madeup" not in text


def test_answers_are_not_cached_and_not_sniffed(client: httpx.Client) -> None:
    answer = client.get("/v1/tasks")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "server" not in answer.headers


def test_connection_is_kept_after_an_ordinary_error(client: httpx.Client) -> None:
    assert "connection" not in client.get("/v1/tasks/nothing").headers


def test_hundred_probes_at_once_cost_few_runs(world: World, client: httpx.Client) -> None:
    async def probe() -> list[int]:
        async with httpx.AsyncClient(base_url=client.base_url, timeout=HANG_S) as many:
            return [answer.status_code for answer in await asyncio.gather(*(many.get("/readyz") for _ in range(100)))]

    before = world.engine.ready_runs
    assert set(asyncio.run(probe())) == {200}
    assert world.engine.ready_runs - before < 10
