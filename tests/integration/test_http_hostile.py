"""Requests that no honest client sends. Each must end soon, with 4xx, in the one error shape, repeating nothing.

The tables are in `tests/hostile`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from app.api.body import EdgeLimits
from tests.fakes import make_world
from tests.hostile import bodies, heads, messages, paths
from tests.hostile.heads import GENERATE, JSON
from tests.hostile.marks import MARK
from tests.hostile.wire import ask, check_refusal, request
from tests.live import HANG_S, Live, serving

TAKES_JSON = [
    ("POST", GENERATE),
    ("POST", "/v1/generate"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/train"),
    ("PUT", "/v1/tasks/echo"),
    ("PUT", "/v1/tasks/echo/aliases/prod"),
    ("POST", "/v1/tasks/echo/versions"),
    ("POST", "/v1/tasks/echo/versions/1/leave-one-out"),
]
ADAPTER = {
    "adapter_config": {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 2},
    "adapter_model": base64.b64encode(b"\x02" + b"\x00" * 7 + b"{}").decode(),
}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> Iterator[Live]:
    limits = EdgeLimits(chunk_s=0.3, body_s=0.5)
    world = make_world(tmp_path_factory.mktemp("world"), redis_server_url, limits=limits)
    with serving(world.app) as live:
        yield live


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


def test_corpus_has_hundreds_of_distinct_cases() -> None:
    own = [bodies.BODIES, bodies.ADAPTERS, bodies.ENVELOPES, paths.WHOLE, paths.CALLS]
    own += [heads.REFUSED, heads.IGNORED, messages.MALFORMED, messages.REFUSED]
    assert sum(map(len, own)) >= 300
    assert len(bodies.ANYWHERE) * len(TAKES_JSON) >= 100
    assert len(set(paths.PARAMETERS.values())) >= 500


@pytest.mark.parametrize("name", bodies.BODIES)
def test_hostile_body_is_refused(live: Live, name: str) -> None:
    status, body = bodies.BODIES[name]
    check_refusal(ask(live, request("POST", GENERATE, [JSON], body)), status)


@pytest.mark.parametrize(("method", "path"), TAKES_JSON)
def test_hostile_body_is_refused_on_every_json_route(
    live: Live, method: str, path: str, record_property: Callable[[str, object], None]
) -> None:
    for status, body in bodies.ANYWHERE.values():
        uploads = status == 413 and path.endswith("/versions")  # its bodies may be as large
        check_refusal(ask(live, request(method, path, [JSON], body)), 422 if uploads else status)
    record_property("tries", len(bodies.ANYWHERE))


@pytest.mark.parametrize("name", bodies.ENVELOPES)
def test_hostile_envelope_is_refused(live: Live, name: str) -> None:
    path, status, body = bodies.ENVELOPES[name]
    check_refusal(ask(live, request("POST", path, [JSON], bodies.text(body))), status)


@pytest.mark.parametrize("name", bodies.ADAPTERS)
def test_hostile_adapter_is_refused(live: Live, name: str) -> None:
    status, change = bodies.ADAPTERS[name]
    message = request("POST", "/v1/tasks/echo/versions", [JSON], bodies.text(ADAPTER | change))
    check_refusal(ask(live, message), status)


@pytest.mark.parametrize("path", paths.WHOLE)
def test_hostile_path_is_refused(live: Live, path: str) -> None:
    """Sent by hand: a client library would tidy the path up."""
    check_refusal(ask(live, request("POST", path, [JSON], b'{"input": "x"}')))


@pytest.mark.parametrize("segment", paths.SEGMENTS)
def test_hostile_name_is_refused_in_every_parameter_of_every_path(
    live: Live, segment: str, record_property: Callable[[str, object], None]
) -> None:
    calls = [call for name, call in paths.PARAMETERS.items() if name.endswith(f" {segment}")]
    for method, path in calls:
        kind = "application/jsonl" if "datasets" in path else "application/json"
        body = b'{"input": "x"}' if method in ("POST", "PUT") else b""
        check_refusal(ask(live, request(method, path, [("content-type", kind)], body)))
    record_property("tries", len(calls))
    assert len(calls) >= 25


@pytest.mark.parametrize(("method", "path"), paths.CALLS)
def test_hostile_parameter_is_refused(live: Live, method: str, path: str) -> None:
    check_refusal(ask(live, request(method, path)))


@pytest.mark.parametrize("name", heads.REFUSED)
def test_hostile_header_is_refused(live: Live, name: str) -> None:
    status, call = heads.REFUSED[name]
    check_refusal(ask(live, request(*call)), status)


@pytest.mark.parametrize("path", ["/v1/tasks/echo", "/docs", "/docs/docs.js", "/docs/swagger-ui/swagger-ui.css"])
@pytest.mark.parametrize("name", heads.IGNORED)
def test_header_that_means_nothing_here_changes_nothing(live: Live, name: str, path: str) -> None:
    answer = ask(live, request("GET", path, heads.IGNORED[name]))
    plain = ask(live, request("GET", path))
    assert (answer.status_code, answer.content) == (200, plain.content)
    assert MARK not in str(answer.headers)


@pytest.mark.parametrize("name", messages.MALFORMED)
def test_message_that_is_not_http_is_refused(live: Live, name: str) -> None:
    check_refusal(ask(live, messages.MALFORMED[name]), 400)


@pytest.mark.parametrize("name", messages.REFUSED)
def test_hostile_message_is_refused(live: Live, name: str) -> None:
    status, message = messages.REFUSED[name]
    check_refusal(ask(live, message), status)


def test_body_of_chunks_without_end_is_cut_at_its_limit(live: Live) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert check_refusal(ask(live, messages.CHUNKED + chunk * 300), 413)["code"] == "too_large"


@pytest.mark.parametrize(
    "text",
    [
        "<prompt:20>",
        "{text}{{}}",
        "</s><s><|endoftext|>",
        "a\x00b",
        "\u202eright to left\u202c",
        "e" + "\u0301" * 5000,
        "\U0001f469\u200d\U0001f469\u200d\U0001f466",
        "\ufeff",
        "\U0010ffff\ufffe",
    ],
)
def test_odd_but_honest_text_is_answered_unchanged(client: httpx.Client, text: str) -> None:
    answer = client.post(GENERATE, json={"input": text})
    assert (answer.status_code, answer.json()["outputs"][0]["text"]) == (200, text)


def test_server_answers_on_after_all_of_it(client: httpx.Client) -> None:
    assert client.get("/readyz").status_code == 200
    assert client.post(GENERATE, json={"input": "still here"}).json()["outputs"][0]["text"] == "still here"
    tasks: list[Any] = client.get("/v1/tasks").json()["data"]
    assert [task["name"] for task in tasks] == ["echo", "nli", "sentiment"]
    assert json.dumps(tasks).count(MARK) == 0
