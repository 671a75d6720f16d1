"""Requests that no honest client sends. Each must end soon, with 4xx, in the one error shape, repeating nothing."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from app.api.body import EdgeLimits
from tests.fakes import make_world
from tests.live import HANG_S, Live, serving

SHAPE = {"code", "message", "param", "type", "request_id"}
GENERATE = "/v1/tasks/echo/generate"
MARK = "qzXq"  # stands in hostile input; may never come back
TEN_MB = 10 << 20


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> Iterator[Live]:
    limits = EdgeLimits(chunk_s=0.3, body_s=0.5, linger_s=2)
    world = make_world(tmp_path_factory.mktemp("world"), redis_server_url, limits=limits)
    with serving(world.app) as live:
        yield live


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        yield client


def check_refusal(answer: httpx.Response) -> dict[str, Any]:
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == SHAPE
    assert error["code"]
    assert error["message"]
    assert MARK not in answer.text
    assert len(answer.content) < 3000
    return error


BODIES: dict[str, bytes] = {
    "empty": b"",
    "spaces": b"  \n ",
    "one brace": b"{",
    "cut off": b'{"input": "qzXq',
    "single quotes": b"{'input': 'qzXq'}",
    "trailing comma": b'{"input": "qzXq",}',
    "two values": b'{"input": "qzXq"} {"input": "qzXq"}',
    "comment": b'{"input": "qzXq" /* no */}',
    "form": b"input=qzXq",
    "xml": b"<input>qzXq</input>",
    "NaN": b'{"input": NaN}',
    "NaN as option": b'{"input": "qzXq", "temperature": NaN}',
    "Infinity": b'{"input": "qzXq", "temperature": Infinity}',
    "minus Infinity": b'{"input": "qzXq", "timeout_s": -Infinity}',
    "1e999": b'{"input": "qzXq", "temperature": 1e999}',
    "minus 1e999": b'{"input": "qzXq", "timeout_s": -1e999}',
    "huge integer": b'{"input": "qzXq", "seed": ' + b"9" * 5000 + b"}",
    "integer beyond 64 bits": b'{"input": "qzXq", "seed": 18446744073709551616}',
    "negative huge integer": b'{"input": "qzXq", "max_tokens": -' + b"9" * 400 + b"}",
    "lone surrogate": b'{"input": "qzXq\\ud800"}',
    "lone low surrogate": b'{"input": "\\udc00qzXq"}',
    "surrogates in the wrong order": b'{"input": "\\udc00\\ud800"}',
    "surrogate as field name": b'{"input": "x", "qzXq\\ud800": 1}',
    "surrogate as input field": b'{"input": {"qzXq\\udfff": "x"}}',
    "surrogate in stop": b'{"input": "x", "stop": ["\\ud800"]}',
    "invalid UTF-8": b'{"input": "\xff\xfe"}',
    "overlong UTF-8": b'{"input": "\xc0\xaf"}',
    "encoded surrogate": b'{"input": "\xed\xa0\x80"}',
    "UTF-16": '{"input": "qzXq"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"input": "qzXq"}',
    "raw control character": b'{"input": "a\x01b"}',
    "NUL bytes": b"\x00" * 100,
    "same key twice": b'{"input": "x", "input": "qzXq"}',
    "same inner key twice": b'{"input": {"text": "x", "text": "qzXq"}}',
    "deep lists": b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deep and open": b"[" * 500_000,
    "a little too deep": b'{"input": ' + b"[" * 33 + b"]" * 33 + b"}",
    "list": b"[1, 2, 3]",
    "string": b'"qzXq"',
    "number": b"17",
    "null": b"null",
    "true": b"true",
    "true as number": b'{"input": "qzXq", "max_tokens": true}',
    "number as text": b'{"input": 17}',
    "text as number": b'{"input": "qzXq", "max_tokens": "3"}',
    "float as integer": b'{"input": "qzXq", "max_tokens": 3.0}',
    "number as flag": b'{"input": "qzXq", "stream": 1}',
    "list as input": b'{"input": ["qzXq"]}',
    "object in inputs": b'{"inputs": {"0": "qzXq"}}',
    "unknown field": b'{"input": "x", "prompt_embeds": "qzXq"}',
    "unknown field with a long name": b'{"input": "x", "' + b"qzXq" * 5000 + b'": 1}',
    "prototype": b'{"input": "x", "__proto__": {"qzXq": 1}}',
    "too many fields": json.dumps({"input": {f"f{n}": "qzXq" for n in range(5000)}}).encode(),
    "too many inputs": json.dumps({"inputs": ["qzXq"] * 20_000}).encode(),
    "too many stop strings": json.dumps({"input": "x", "stop": ["qzXq"] * 1000}).encode(),
    "long stop string": json.dumps({"input": "x", "stop": "qzXq" * 1000}).encode(),
    "ten megabytes of text": b'{"input": "' + b"qzXq" * (TEN_MB // 4) + b'"}',
    "ten megabytes of nothing": b" " * TEN_MB,
}


@pytest.mark.parametrize("name", BODIES)
def test_hostile_body_is_refused(client: httpx.Client, name: str) -> None:
    check_refusal(client.post(GENERATE, content=BODIES[name], headers={"content-type": "application/json"}))


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/completions", "/v1/train"])
@pytest.mark.parametrize("name", ["cut off", "NaN", "1e999", "lone surrogate", "deep lists", "same key twice", "null"])
def test_hostile_body_is_refused_on_every_json_route(client: httpx.Client, path: str, name: str) -> None:
    check_refusal(client.post(path, content=BODIES[name], headers={"content-type": "application/json"}))


PATHS = [
    "/v1/tasks/../../etc/passwd/generate",
    "/v1/tasks/%2e%2e/generate",
    "/v1/tasks/%2e%2e%2f%2e%2e%2fetc%2fpasswd/generate",
    "/v1/tasks/..%5c..%5cwindows/generate",
    "/v1/tasks/%252e%252e%252fetc/generate",
    "/v1/tasks/%c0%ae%c0%ae/generate",
    "/v1/tasks/a%00b/generate",
    "/v1/tasks/a%0d%0aX-Evil:1/generate",
    "/v1/tasks/%ff%fe/generate",
    "/v1/tasks/%ed%a0%80/generate",
    "/v1/tasks/%F0%9F%98%80/generate",
    "/v1/tasks/%20/generate",
    "/v1/tasks/" + "a" * 5000 + "/generate",
    "/v1/tasks/echo%0a/generate",
    "/v1/tasks/a..b/generate",
    "/v1/tasks/echo@99999999999999999999/generate",
    "/v1/tasks/echo@-1/generate",
    "/v1/tasks/echo@1@1/generate",
    "/v1/tasks/echo:prod:prod/generate",
    "/v1/tasks//generate",
    "//v1/tasks/echo/generate",
    "/v1/tasks/echo/generate/",
]


@pytest.mark.parametrize("path", PATHS)
def test_hostile_path_is_refused(live: Live, path: str) -> None:
    """Sent by hand: a client library would tidy the path up."""
    check_raw(live, request(path, body=b'{"input": "x"}'))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/tasks/%2e%2e"),
        ("GET", "/v1/tasks/echo/versions/0"),
        ("GET", "/v1/tasks/echo/versions/" + "9" * 5000),
        ("GET", "/v1/tasks/echo/versions/1e3"),
        ("GET", "/v1/tasks/echo/aliases/%2e%2e%2fx"),
        ("DELETE", "/v1/tasks/..%2f"),
        ("GET", "/v1/datasets/%2e%2e%2fetc"),
        ("PUT", "/v1/datasets/%2e%2e"),
        ("GET", "/v1/train/..%2f..%2fetc"),
        ("GET", "/v1/train/job-%00"),
        ("GET", "/v1/tasks?limit=1e9"),
        ("GET", "/v1/tasks?limit=-1"),
        ("GET", "/v1/tasks?after=" + "a" * 500),
        ("GET", "/v1/train?limit=0"),
        ("GET", "/docs/swagger-ui/..%2f..%2f..%2fmain.py"),
        ("GET", "/docs/swagger-ui/%2e%2e/docs.js%00"),
    ],
)
def test_hostile_parameter_is_refused(live: Live, method: str, path: str) -> None:
    check_raw(live, request(path, method=method))


MESSAGES: dict[str, bytes] = {
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no version": b"GET /livez\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two lengths": b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "bad length": b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-length: two\r\n\r\n{}",
    "length and chunks": (
        b"POST /v1/generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    ),
    "bad chunk": (
        b"POST /v1/generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"
    ),
    "folded header": b"GET /v1/tasks HTTP/1.1\r\nhost: 127.0.0.1\r\na b: c\r\n\r\n",
    "many headers": b"GET /v1/tasks HTTP/1.1\r\nhost: 127.0.0.1\r\n" + b"x: y\r\n" * 500 + b"\r\n",
    "large header": b"GET /v1/tasks HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"y" * 20_000 + b"\r\n\r\n",
    "huge header": b"GET /v1/tasks HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"y" * 1_000_000,
    "body that stalls": (
        b"POST /v1/generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        b'content-length: 20\r\n\r\n{"requ'
    ),
    "announced terabyte": (
        b"POST /v1/generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        b"expect: 100-continue\r\ncontent-length: 1099511627776\r\n\r\n"
    ),
    "unknown method": b"BREW /v1/tasks HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    "trace": b"TRACE /v1/tasks HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    "foreign host": b"GET /v1/tasks HTTP/1.1\r\nhost: evil.example\r\n\r\n",
    "foreign origin": (
        b"PUT /v1/tasks/x HTTP/1.1\r\nhost: 127.0.0.1\r\norigin: https://evil.example\r\n"
        b"content-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    ),
    "plain text body": (
        b"POST /v1/train HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\n{}"
    ),
    "websocket": (
        b"GET /v1/tasks/echo/nothing HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_hostile_message_is_refused(live: Live, name: str) -> None:
    check_raw(live, MESSAGES[name])


def test_body_of_chunks_without_end_is_cut_at_its_limit(live: Live) -> None:
    head = (
        b"POST /v1/generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    error = check_raw(live, head + chunk * 300)
    assert error["code"] == "too_large"


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


def request(path: str, *, method: str = "POST", body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def check_raw(live: Live, message: bytes) -> dict[str, Any]:
    """Send bytes, read one answer, check its shape."""
    head, _, body = exchange(live, message).partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    assert status_line.startswith("HTTP/1.1 "), (status_line, body)
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return check_refusal(httpx.Response(int(status_line.split()[1]), headers=headers, content=body))


def exchange(live: Live, message: bytes) -> bytes:
    """All the server says until it is silent or closes, however much of `message` it was willing to read."""
    with socket.create_connection((live.host, live.port), timeout=HANG_S) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # it had heard enough; its answer may still be there
            connection.sendall(message)
        said = b""
        while not complete(said):
            try:
                received = connection.recv(65536)
            except ConnectionResetError:
                break
            if not received:
                break
            said += received
        return said


def complete(said: bytes) -> bool:
    head, end, body = said.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return bool(end) and len(body) >= int(line.partition(b":")[2])
    return False
