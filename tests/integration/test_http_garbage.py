"""Bytes without sense on raw connections: whatever comes, the server answers in HTTP or closes, and answers on."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Iterator

import httpx
import pytest

from app.api.body import EdgeLimits
from tests.fakes import make_world
from tests.hostile import heads, messages
from tests.hostile.wire import ask, check_refusal, converse, request, statuses
from tests.live import HANG_S, Live, serving

HONEST = [
    request("GET", "/v1/tasks"),
    request("GET", "/livez"),
    request("POST", "/v1/tasks/echo/generate", [heads.JSON], b'{"input": "a b c", "max_tokens": 5}'),
    request("POST", "/v1/generate", [heads.JSON], b'{"tasks": ["echo", "sentiment"], "input": "a"}'),
    request("PUT", "/v1/tasks/echo/aliases/canary", [heads.JSON], b'{"version": 1}'),
    request("PUT", "/v1/datasets/rows", [("content-type", "text/csv")], b"text,label\na,b\n"),
    messages.CHUNKED + b'1d\r\n{"requests":[{"task":"echo",\r\n' + b'e\r\n"input": "x"}]}\r\n0\r\n\r\n',
]
TOKENS = [
    b"\r\n",
    b"\n",
    b"\x00",
    b"\xff",
    b" ",
    b":",
    b"%00",
    b"chunked",
    b"9" * 30,
    b"HTTP/1.1",
    b'"',
    b"{",
    b"\t",
    b";",
]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> Iterator[Live]:
    limits = EdgeLimits(chunk_s=0.3, body_s=0.5)
    with serving(make_world(tmp_path_factory.mktemp("world"), redis_server_url, limits=limits).app) as live:
        yield live


def noise(chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice([0, 1, 7, 100, 5000])) + chance.choice([b"", b"\r\n\r\n"])


def printable(chance: random.Random) -> bytes:
    text = "".join(chance.choices(string.printable, k=chance.choice([1, 30, 500])))
    return text.encode() + chance.choice([b"", b"\r\n\r\n"])


def mutated(chance: random.Random) -> bytes:
    """An honest request with some of its bytes changed, left out, doubled or cut off."""
    message = bytearray(chance.choice(HONEST))
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        at = chance.randrange(len(message) + 1)
        match chance.randrange(5):
            case 0:
                message[at : at + 1] = chance.randbytes(1)
            case 1:
                message[at:at] = chance.choice(TOKENS)
            case 2:
                del message[at : at + chance.randrange(1, 9)]
            case 3:
                message[at:at] = message[at : at + chance.randrange(1, 60)]
            case _:
                del message[at + chance.randrange(200) :]
    return bytes(message)


def pipelined(chance: random.Random) -> bytes:
    """Several requests at once, in the end one that is broken."""
    return b"".join(chance.choices(HONEST, k=chance.randrange(2, 6))) + chance.choice([b"", mutated(chance)])


KINDS = {"noise": noise, "printable": printable, "mutated": mutated, "pipelined": pipelined}


def throw(live: Live, kind: str, count: int, seed: int) -> None:
    """Every connection must end by itself within `HANG_S`; what is said on it must be answers, none of them 5xx."""
    chance, answered = random.Random(seed), 0
    for _ in range(count):
        message = KINDS[kind](chance)
        found = statuses(converse(live, message, quiet_s=0.05))
        answered += len(found)
        assert all(status < 500 for status in found), (message, found)
    assert answered > count / 5, "hardly anything was read"
    with httpx.Client(base_url=live.url, timeout=HANG_S) as client:
        answer = client.post("/v1/tasks/echo/generate", json={"input": "still here"})
        assert answer.json()["outputs"][0]["text"] == "still here"
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_is_answered_or_closed_and_the_server_answers_on(
    live: Live, kind: str, record_property: Callable[[str, object], None]
) -> None:
    throw(live, kind, 60, seed=1)
    record_property("tries", 60)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", KINDS)
def test_very_much_garbage_is_answered_or_closed_and_the_server_answers_on(
    live: Live, kind: str, record_property: Callable[[str, object], None]
) -> None:
    throw(live, kind, 1500, seed=2)
    record_property("tries", 1500)


def test_pipelined_requests_are_answered_each_in_their_order(live: Live) -> None:
    texts = [f"number {n} of many" for n in range(20)]
    bodies = [json.dumps({"input": text}).encode() for text in texts]
    sent = b"".join(request("POST", "/v1/tasks/echo/generate", [heads.JSON], body) for body in bodies)
    said = converse(live, sent, quiet_s=2)
    assert statuses(said) == [200] * 20
    places = [said.index(text.encode()) for text in texts]
    assert places == sorted(places)


def test_answers_that_nobody_waits_for_end_with_the_connection(live: Live) -> None:
    """A broken request behind honest ones: they are answered, it is refused, and the connection ends."""
    said = converse(live, HONEST[1] * 3 + b"qzXq\r\n\r\n" + HONEST[1] * 3, quiet_s=2)
    assert statuses(said) == [200, 200, 200, 400]


@pytest.mark.parametrize("message", [b"\x00\xff\r\n\r\n", b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"])
def test_message_that_is_not_http_gets_a_request_id_as_every_other(
    live: Live, message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="app.api.server")
    answer = ask(live, message)
    error = check_refusal(answer, 400)
    assert error["request_id"].startswith("req_")
    assert answer.headers["x-request-id"] == error["request_id"]
    assert error["request_id"] in [getattr(record, "request_id", None) for record in caplog.records]
