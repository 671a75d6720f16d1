"""Keys and limits over HTTP: every route, two replicas, rotation, Redis away, and what is written of it."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from starlette.routing import BaseRoute, Mount

from app.access import KeyLimits, Keyring, MadeKey
from app.access.pepper import Pepper
from app.access.places import file_keys, pepper_of
from app.access.redis_store import RedisKeys
from app.api.auth import OPEN_PATHS, ROUTES, needed
from app.api.auth.scopes import ASSETS
from app.cli import main
from app.supervisor.embedded import EmbeddedServer
from tests.fakes import World, make_world
from tests.live import HANG_S, serving, wait_until

PEPPER = "a pepper of the tests, long enough for one"
SHAPE = {"code", "message", "param", "type", "request_id"}
ROWS = [{"text": f"{word} number {n}", "label": word} for n in range(10) for word in ("good", "bad")]
CALLS = sorted(call for call in ROUTES if call[1] not in OPEN_PATHS)
NO_ROUTES = [
    ("GET", "/docs/swagger-ui/swagger-ui.css"),
    ("GET", "/docs/swagger-ui/nothing"),
    ("GET", "/nothing"),
    ("POST", "/v1/tasks/"),
    ("PATCH", "/v1/tasks/echo"),
    ("OPTIONS", "/v1/tasks"),
    ("POST", "/livez"),
    ("DELETE", "/readyz"),
]


class Replicas:
    """Replicas of one service on one Redis, each with a data folder of its own, and the keys that they share."""

    def __init__(self, folder: Path, url: str, stack: ExitStack) -> None:
        self._folder, self._url, self._stack = folder, url, stack
        self.worlds: list[World] = []
        self.store = RedisKeys(url)
        self.ring = Keyring([self.store], Pepper(PEPPER, folder / "pepper"))
        stack.callback(self.store.close)

    def make(self, *scopes: Any, **more: Any) -> MadeKey:
        return self.ring.create(self.store, scopes, **more)

    def start(self, **settings: Any) -> httpx.Client:
        return self._start(self._folder / f"replica-{len(self.worlds)}", **settings)

    def start_again(self, number: int) -> httpx.Client:
        """With what another knew of keys."""
        folder = self._folder / f"replica-{len(self.worlds)}"
        shutil.copytree(self.worlds[number].settings.data_dir / "keys", folder / "keys")
        return self._start(folder)

    def _start(self, folder: Path, **settings: Any) -> httpx.Client:
        world = make_world(folder, self._url, key_pepper=PEPPER, **settings)
        self.worlds.append(world)
        live = self._stack.enter_context(serving(world.app))
        return self._stack.enter_context(httpx.Client(base_url=live.url, timeout=HANG_S))


@pytest.fixture(scope="module")
def clean_redis(redis_server_url: str) -> Iterator[str]:
    with redis.Redis.from_url(redis_server_url) as client:
        client.flushall()
        yield redis_server_url
        client.flushall()  # keys that stayed would lock the services of other tests


@pytest.fixture
def replicas(tmp_path: Path, redis_url: str, clean_redis: str) -> Iterator[Replicas]:
    with ExitStack() as stack:
        yield Replicas(tmp_path, redis_url, stack)


def bearer(key: str | MadeKey) -> dict[str, str]:
    return {"authorization": f"Bearer {key.secret if isinstance(key, MadeKey) else key}"}


def ask(client: httpx.Client, key: str | MadeKey, text: str = "one two three") -> httpx.Response:
    return client.post("/v1/tasks/echo/generate", json={"input": text}, headers=bearer(key))


def concrete(path: str) -> str:
    return path.replace("{number}", "1").replace("{", "").replace("}", "")


# every route


@pytest.fixture(scope="module")
def closed(
    tmp_path_factory: pytest.TempPathFactory, clean_redis: str
) -> Iterator[tuple[httpx.Client, dict[str, MadeKey]]]:
    folder = tmp_path_factory.mktemp("closed")
    with ExitStack() as stack:
        replicas = Replicas(folder, clean_redis, stack)
        keys = {scope: replicas.make(scope) for scope in ("generate", "train", "admin")}
        keys["expired"] = replicas.make("admin", lifetime_s=0.001)
        keys["revoked"] = replicas.make("admin")
        replicas.ring.revoke(keys["revoked"].record.id)
        yield replicas.start(), keys


def routes_of(routes: list[BaseRoute], found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Method and path of everything that an application answers."""
    for route in routes:
        if isinstance(route, Mount):
            assert route.path + "/" == ASSETS, "a mounted application asks for no key of its own"
        elif hasattr(route, "original_router"):
            routes_of(route.original_router.routes, found)
        else:
            found |= {(method, route.path) for method in route.methods}  # type: ignore[attr-defined]
    return found


def test_every_route_of_the_application_says_what_it_asks_for(tmp_path: Path, redis_url: str) -> None:
    found = routes_of(make_world(tmp_path, redis_url).app.router.routes, set())
    assert len(found) > 25
    unlisted = {call for call in found if call[0] != "HEAD" and call not in ROUTES}
    assert not unlisted, "say in app/api/auth/scopes.py what these ask for"


def test_list_and_matching_agree_on_every_route() -> None:
    for (method, path), need in ROUTES.items():
        assert needed(method, concrete(path)) == need, (method, path)


@pytest.mark.parametrize(("method", "path"), CALLS + NO_ROUTES)
def test_every_route_refuses_no_key_a_wrong_an_expired_and_a_revoked_one_alike(
    closed: tuple[httpx.Client, dict[str, MadeKey]], method: str, path: str
) -> None:
    client, keys = closed
    wrong = keys["admin"].secret[:-1] + ("0" if keys["admin"].secret[-1] != "0" else "1")
    sent = [{}, bearer(wrong), bearer(f"ck_{'0' * 12}_{'0' * 64}"), bearer(keys["expired"]), bearer(keys["revoked"])]
    bodies = set()
    for headers in sent:
        answer = client.request(method, concrete(path), headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        error = answer.json()["error"]
        assert error.pop("request_id") == answer.headers["x-request-id"]
        bodies.add(json.dumps(error))
    assert len(bodies) == 1


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_every_route_refuses_keys_of_other_scopes_and_takes_its_own(
    closed: tuple[httpx.Client, dict[str, MadeKey]], method: str, path: str
) -> None:
    client, keys = closed
    need = ROUTES[method, path]
    for scope in ("generate", "train", "admin"):
        answer = client.request(method, concrete(path), headers=bearer(keys[scope]))
        if need in ("any", scope) or scope == "admin":
            assert answer.status_code not in (401, 403), (scope, answer.text)
            continue
        assert answer.status_code == 403
        error = answer.json()["error"]
        assert set(error) == SHAPE
        assert (error["code"], error["type"]) == ("insufficient_scope", "permission_error")


def test_key_in_the_address_is_none(closed: tuple[httpx.Client, dict[str, MadeKey]]) -> None:
    client, keys = closed
    for name in ("key", "api_key", "access_token"):
        assert client.get("/v1/tasks", params={name: keys["admin"].secret}).status_code == 401


def test_refusal_comes_before_the_body_is_read(closed: tuple[httpx.Client, dict[str, MadeKey]]) -> None:
    client, keys = closed
    for headers, status in ((b"", 401), (f"authorization: Bearer {keys['generate'].secret}\r\n".encode(), 403)):
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=HANG_S) as wire:
            wire.sendall(b"PUT /v1/datasets/x HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000\r\n" + headers + b"\r\n")
            assert wire.recv(4096).startswith(f"HTTP/1.1 {status}".encode())


# changes


def test_service_without_keys_asks_for_one_as_soon_as_one_is_made(tmp_path: Path, redis_url: str) -> None:
    world = make_world(tmp_path, redis_url)
    with serving(world.app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        assert client.get("/v1/tasks").status_code == 200
        store = file_keys(world.settings)
        made = Keyring([store], pepper_of(world.settings)).create(store, ["generate"])
        began = time.monotonic()
        wait_until(lambda: client.get("/v1/tasks").status_code == 401)
        assert time.monotonic() - began < 2.5
        assert client.get("/v1/tasks", headers=bearer(made)).status_code == 200


def test_revocation_is_seen_by_every_replica_within_two_seconds(replicas: Replicas) -> None:
    made = replicas.make("generate")
    clients = [replicas.start(), replicas.start()]
    assert [ask(client, made).status_code for client in clients] == [200, 200]
    replicas.ring.revoke(made.record.id)
    began = time.monotonic()
    wait_until(lambda: [ask(client, made).status_code for client in clients] == [401, 401])
    assert time.monotonic() - began < 2.5


def test_rotation_leaves_both_secrets_valid_for_the_overlap(replicas: Replicas) -> None:
    first = replicas.make("generate")
    client = replicas.start()
    second = replicas.ring.rotate(first.record.id, overlap_s=4)
    wait_until(lambda: ask(client, second).status_code == 200)
    assert ask(client, first).status_code == 200
    wait_until(lambda: ask(client, first).status_code == 401)
    assert ask(client, second).status_code == 200
    assert {"", *(replicas.worlds[0].engine.tenants)} == {"", first.record.id}


def test_engine_is_told_whose_row_it_is_whatever_way_it_came(replicas: Replicas) -> None:
    made = replicas.make("generate")
    client = replicas.start()
    calls: list[tuple[str, dict[str, Any]]] = [
        ("/v1/tasks/echo/generate", {"input": "a b"}),
        ("/v1/tasks/echo/generate", {"inputs": ["a", "b"]}),
        ("/v1/tasks/echo/generate", {"input": "a b", "stream": True}),
        ("/v1/generate", {"requests": [{"task": "echo", "input": "a"}, {"task": "sentiment", "input": "b"}]}),
        ("/v1/generate", {"tasks": ["echo", "sentiment"], "input": "a"}),
        ("/v1/completions", {"model": "echo", "prompt": ["a", "b"]}),
    ]
    for path, body in calls:
        assert client.post(path, json=body, headers=bearer(made)).status_code == 200
    tenants = replicas.worlds[0].engine.tenants
    assert (len(tenants), set(tenants)) == (10, {made.record.id})


# limits


def test_requests_of_a_key_are_limited_over_all_replicas_together(replicas: Replicas) -> None:
    made, free = replicas.make("generate", limits=KeyLimits(requests_per_minute=6)), replicas.make("generate")
    clients = [replicas.start(), replicas.start()]
    answers = [ask(clients[n % 2], made) for n in range(12)]
    assert [answer.status_code for answer in answers].count(200) == 6
    refused = answers[-1]
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limited"
    assert 1 <= int(refused.headers["retry-after"]) <= 10
    assert {ask(client, free).status_code for client in clients} == {200}, "one key's limit is no other's"


def test_tokens_overdrawn_are_waited_for_and_what_streams_counts_too(replicas: Replicas) -> None:
    made = replicas.make("generate", limits=KeyLimits(tokens_per_minute=60))
    clients = [replicas.start(), replicas.start()]
    long = " ".join(["word"] * 45)  # as many tokens again are answered
    assert ask(clients[0], made, long).status_code == 200
    refused = ask(clients[1], made)
    assert refused.status_code == 429
    assert 25 <= int(refused.headers["retry-after"]) <= 31  # 30 tokens of debt, one a second
    other = replicas.make("generate", limits=KeyLimits(tokens_per_minute=60))
    wait_until(lambda: ask(clients[0], other, "x").status_code == 200)
    body = {"input": long, "stream": True}
    assert clients[0].post("/v1/tasks/echo/generate", json=body, headers=bearer(other)).status_code == 200
    wait_until(lambda: ask(clients[1], other, "x").status_code == 429)


def test_rows_that_are_left_cost_a_guess(replicas: Replicas) -> None:
    made = replicas.make("generate", limits=KeyLimits(tokens_per_minute=60))
    client = replicas.start()
    words = " ".join(["word"] * 80)
    with client.stream(
        "POST",
        "/v1/tasks/echo/generate",
        json={"input": f"{words} !pause", "stream": True},
        headers=bearer(made),
    ) as answer:
        assert answer.status_code == 200
        next(answer.iter_lines())
    wait_until(lambda: ask(client, made, "x").status_code == 429)


def submit(client: httpx.Client, key: MadeKey, idempotency: str | None = None) -> httpx.Response:
    headers = bearer(key) | ({} if idempotency is None else {"idempotency-key": idempotency})
    return client.post("/v1/train", json={"task": "trained", "training_data": {"inline": ROWS}}, headers=headers)


def test_jobs_at_one_time_are_limited_until_one_ends(replicas: Replicas) -> None:
    made = replicas.make("train", limits=KeyLimits(concurrent_jobs=2))
    clients = [replicas.start(), replicas.start()]
    jobs = [submit(clients[0], made, "a"), submit(clients[1], made)]
    assert [job.status_code for job in jobs] == [202, 202]
    refused = submit(clients[0], made)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "job_limit")
    assert int(refused.headers["retry-after"]) >= 1
    again = submit(clients[1], made, "a")
    assert (again.status_code, again.json()["id"]) == (202, jobs[0].json()["id"])
    job = jobs[0].json()["id"]
    assert clients[0].post(f"/v1/train/{job}/cancel", headers=bearer(made)).status_code == 200
    assert submit(clients[1], made).status_code == 202


def test_jobs_ever_are_limited_and_a_refused_one_does_not_count(replicas: Replicas) -> None:
    made = replicas.make("train", limits=KeyLimits(total_jobs=1))
    client = replicas.start()
    bad = client.post("/v1/train", json={"task": "t", "training_data": {"dataset": "none"}}, headers=bearer(made))
    assert bad.status_code == 404
    assert submit(client, made, "a").status_code == submit(client, made, "a").status_code == 202
    refused = submit(client, made)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "job_quota")


def test_idempotency_keys_of_two_callers_do_not_meet(replicas: Replicas) -> None:
    one, other = replicas.make("train"), replicas.make("train")
    client = replicas.start()
    assert submit(client, one, "same").json()["id"] != submit(client, other, "same").json()["id"]


# Redis away


def test_known_keys_open_and_limits_hold_for_each_replica_while_redis_is_away(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer(folder))
        replicas = Replicas(tmp_path, server.url, stack)
        made = replicas.make("generate", limits=KeyLimits(requests_per_minute=3))
        client = replicas.start()
        assert ask(client, made).status_code == 200
        server.kill()
        time.sleep(1.5)  # the replica has looked for keys meanwhile
        assert [ask(client, made).status_code for _ in range(4)] == [200, 200, 200, 429]
        assert client.get("/v1/tasks").status_code == 401
        cold = replicas.start_again(0)
        assert ask(cold, made).status_code == 200, "a replica that starts now knows the copy"
        stack.enter_context(EmbeddedServer(folder))
        replicas.ring.revoke(made.record.id)
        wait_until(lambda: [ask(one, made).status_code for one in (client, cold)] == [401, 401])


# what is written


def test_audit_names_who_did_what_and_no_text_and_logs_hold_no_key(
    replicas: Replicas, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    made, weak = replicas.make("admin", "train", "generate"), replicas.make("generate")
    client = replicas.start(audit="all")
    words = "a very private sentence"
    ask(client, made, words)
    job = submit(client, made).json()["id"]
    client.put("/v1/tasks/echo/aliases/canary", json={"version": 1}, headers=bearer(made))
    client.put("/v1/tasks/echo/aliases/canary", json={"version": 1}, headers=bearer(weak))
    client.post(f"/v1/tasks/{words}/generate", json={"input": words}, headers=bearer(made))
    client.get("/v1/tasks", headers=bearer(made.secret[:-1]))
    (file,) = (replicas.worlds[0].settings.data_dir / "logs").glob("audit-*.jsonl")
    wait_until(lambda: len(file.read_text().splitlines()) == 6)
    text = file.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    seen = [(line["key"], line["call"], line["status"], line["outcome"]) for line in lines]
    put = "PUT /v1/tasks/{task}/aliases/{alias}"
    generate = "POST /v1/tasks/{ref}/generate"
    assert seen == [
        (made.record.id, generate, 200, "done"),
        (made.record.id, "POST /v1/train", 202, "done"),
        (made.record.id, put, 200, "done"),
        (weak.record.id, put, 403, "refused"),
        (made.record.id, generate, seen[4][2], "refused"),
        (None, "GET /v1/tasks", 401, "refused"),
    ]
    assert lines[0]["versions"] == ["echo@1"]
    assert lines[1]["job"] == job
    assert (lines[2]["task"], lines[2]["alias"]) == ("echo", "canary")
    assert file.stat().st_mode & 0o077 == 0
    ours = [record for record in caplog.records if record.name.startswith(("app.", "prompt_store", "uvicorn"))]
    logged = "".join(f"{record.getMessage()} {vars(record)}" for record in ours)
    assert made.record.id in logged
    assert "private" not in text + logged
    for secret in (made.secret, weak.secret):
        assert secret.rpartition("_")[2][:-1] not in text + logged


def test_flood_of_refusals_writes_few_lines_and_says_how_many_were_left_out(replicas: Replicas) -> None:
    made = replicas.make("admin")
    client = replicas.start()
    for _ in range(60):
        assert client.get("/v1/tasks").status_code == 401
    client.delete("/v1/tasks/none", headers=bearer(made))
    (file,) = (replicas.worlds[0].settings.data_dir / "logs").glob("audit-*.jsonl")
    wait_until(lambda: '"DELETE ' in file.read_text())
    assert len(file.read_text().splitlines()) < 40
    time.sleep(1.2)
    client.get("/v1/tasks")
    wait_until(lambda: "left_out" in file.read_text())


# clients


def test_commands_send_the_key_of_the_environment(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = replicas.make("generate")
    client = replicas.start()
    monkeypatch.setenv("CHORUS_URL", str(client.base_url))
    monkeypatch.delenv("CHORUS_API_KEY", raising=False)
    command: Callable[[], int] = lambda: main(["generate", "echo", "hello there"])  # noqa: E731
    assert command() == 4
    monkeypatch.setenv("CHORUS_API_KEY", made.secret)
    assert command() == 0
    assert "hello there" in capsys.readouterr().out
    assert main(["bench", "--requests", "5", "--warm-up", "0", "--task", "echo", "--json"]) == 0
