"""The guard around a small application, driven as a server drives it, message by message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.auth import open_access
from app.api.body import EdgeLimits
from app.api.drain import Drain
from app.api.guard import Guard
from app.errors import Overloaded
from app.settings import Settings
from app.telemetry import Metrics, request_id

LIMITS = EdgeLimits(chunk_s=0.05, body_s=0.1, send_s=0.05)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def scope_of(method: str, path: str, headers: list[tuple[bytes, bytes]], http_version: str = "1.1") -> Scope:
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    return {**scope, "headers": headers, "http_version": http_version}


class Call:
    """One request through a guard: what it sends, and what the application or the client does."""

    def __init__(self, tmp_path: Path, app: ASGIApp = echo, *, drain: Drain | None = None) -> None:
        self.drain = drain or Drain(1)
        settings = Settings(data_dir=tmp_path, max_body_bytes=1024, max_upload_bytes=2048)
        self.metrics = Metrics()
        access = open_access(settings)
        self.guard = Guard(app, settings=settings, access=access, drain=self.drain, metrics=self.metrics, limits=LIMITS)
        self.sent: list[Message] = []
        self.stall = False

    def __call__(
        self,
        chunks: Sequence[bytes] = (b"",),
        *,
        path: str = "/v1/x",
        method: str = "POST",
        headers: Sequence[tuple[bytes, bytes]] = (),
        http_version: str = "1.1",
        ends: bool = True,
        leaves: bool = False,
    ) -> None:
        messages: list[Message] = [{"type": "http.request", "body": one, "more_body": True} for one in chunks]
        messages[-1]["more_body"] = not ends
        if leaves:
            messages.append({"type": "http.disconnect"})

        async def receive() -> Message:
            if messages:
                return messages.pop(0)
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            if self.stall:
                await asyncio.Event().wait()
            self.sent.append(message)

        head = [(b"host", b"127.0.0.1"), *headers]
        asyncio.run(self.guard(scope_of(method, path, head, http_version), receive, send))

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def code(self) -> Any:
        return json.loads(self.body)["error"]["code"]


def test_body_arrives_whole_whatever_its_pieces(tmp_path: Path) -> None:
    call = Call(tmp_path)
    call([b"ab", b"", b"cd"])
    assert (call.status, call.body) == (200, b"abcd")


def test_body_over_its_limit_is_413_also_without_a_length(tmp_path: Path) -> None:
    call = Call(tmp_path)
    call([b"x" * 600] * 2)
    assert (call.status, call.code) == (413, "too_large")
    assert call.headers[b"connection"] == b"close"


def test_announced_body_over_its_limit_is_413_before_it_is_asked_for(tmp_path: Path) -> None:
    call = Call(tmp_path)
    call([b"x"], headers=[(b"content-length", b"9" * 30), (b"expect", b"100-continue")], ends=False)
    assert call.code == "too_large"


@pytest.mark.parametrize("version", ["0.9", "2", "2.0", "9.9"])
def test_other_version_of_http_is_refused(tmp_path: Path, version: str) -> None:
    call = Call(tmp_path)
    call(http_version=version)
    assert (call.status, call.code) == (400, "bad_request")


@pytest.mark.parametrize("line", [{"path": "/v1/" + "x" * 9000}, {"method": "Q" * 9000}])
def test_line_that_is_too_long_is_431(tmp_path: Path, line: dict[str, Any]) -> None:
    call = Call(tmp_path)
    call(**line)
    assert (call.status, call.code) == (431, "headers_too_large")


def test_body_that_is_packed_is_415(tmp_path: Path) -> None:
    call = Call(tmp_path)
    call([b"x"], headers=[(b"content-encoding", b"identity"), (b"content-encoding", b"gzip")])
    assert (call.status, call.code) == (415, "unsupported_media_type")
    call = Call(tmp_path)
    call([b"x"], headers=[(b"content-encoding", b"Identity")])
    assert call.status == 200


def test_upload_may_be_larger(tmp_path: Path) -> None:
    call = Call(tmp_path)
    call([b"x" * 1500], path="/v1/datasets/a", method="PUT")
    assert call.status == 200


def test_body_that_stalls_is_408(tmp_path: Path) -> None:
    call = Call(tmp_path)
    call([b"x"], ends=False)
    assert (call.status, call.code) == (408, "read_timeout")


def test_body_that_trickles_on_for_ever_is_408(tmp_path: Path) -> None:
    async def trickle() -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    call = Call(tmp_path)

    async def send(message: Message) -> None:
        call.sent.append(message)

    asyncio.run(call.guard(scope_of("POST", "/v1/x", [(b"host", b"127.0.0.1")]), trickle, send))
    assert call.code == "read_timeout"


def test_client_that_leaves_while_sending_gets_no_answer_and_no_application(tmp_path: Path) -> None:
    called = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        called.append(1)

    call = Call(tmp_path, app)
    call([b"x"], ends=False, leaves=True)
    assert (call.sent, called) == ([], [])
    assert 'status="499"' in call.metrics.exposition().decode()


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([(b"content-length", b"2"), (b"transfer-encoding", b"chunked")], "bad_request"),
        ([(b"x", b"y")] * 101, "headers_too_large"),
        ([(b"x", b"y" * 17_000)], "headers_too_large"),
    ],
)
def test_head_that_is_malformed_or_too_large_is_refused(
    tmp_path: Path, headers: list[tuple[bytes, bytes]], code: str
) -> None:
    call = Call(tmp_path)
    call(headers=headers)
    assert call.code == code


def test_known_error_raised_inside_has_its_status(tmp_path: Path) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise Overloaded("full", retry_after_s=3)

    call = Call(tmp_path, app)
    call()
    assert (call.status, call.headers[b"retry-after"]) == (429, b"3")


def test_bug_inside_is_500_without_its_words_and_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("/srv/secret")

    call = Call(tmp_path, app)
    call()
    assert (call.status, call.code) == (500, "internal_error")
    assert b"secret" not in call.body
    assert any(record.exc_info for record in caplog.records)


def test_bug_after_the_first_byte_ends_the_connection(tmp_path: Path) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("late")

    call = Call(tmp_path, app)
    with pytest.raises(KeyError):
        call()
    assert call.status == 200


def test_reader_that_stalls_is_given_up(tmp_path: Path) -> None:
    ended = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await echo(scope, receive, send)
        finally:
            ended.append(1)

    call = Call(tmp_path, app)
    call.stall = True
    call()
    assert (ended, call.sent) == ([1], [])


def test_draining_replica_refuses_new_work_but_answers_probes(tmp_path: Path) -> None:
    drain = Drain(1)
    drain.begin()
    refused, alive = Call(tmp_path, drain=drain), Call(tmp_path, drain=drain)
    refused()
    alive(path="/livez", method="GET")
    assert (refused.status, refused.code, alive.status) == (503, "draining", 200)
    assert b"retry-after" in refused.headers


def test_request_cut_off_by_the_stop_is_told_so(tmp_path: Path) -> None:
    drain = Drain(0)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        drain.begin()
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    call = Call(tmp_path, app, drain=drain)
    call()
    assert (call.status, call.code) == (503, "cut_off")


def test_request_in_flight_is_counted_until_it_has_ended(tmp_path: Path) -> None:
    drain = Drain(60)
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(drain.in_flight)
        drain.begin()
        seen.append(drain.finished)
        await echo(scope, receive, send)

    Call(tmp_path, app, drain=drain)()
    assert seen == [1, False]
    assert (drain.in_flight, drain.finished) == (0, True)


@pytest.mark.parametrize(("given", "kept"), [(b"abc-1", True), (b"a b", False), (b"x" * 200, False), (b"a\n", False)])
def test_request_id_is_the_callers_if_it_is_harmless(tmp_path: Path, given: bytes, kept: bool) -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(request_id.get())
        await echo(scope, receive, send)

    call = Call(tmp_path, app)
    call(headers=[(b"x-request-id", given)])
    assert (call.headers[b"x-request-id"] == given) is kept
    assert [call.headers[b"x-request-id"].decode()] == seen


def test_websocket_is_closed(tmp_path: Path) -> None:
    call = Call(tmp_path)

    async def send(message: Message) -> None:
        call.sent.append(message)

    asyncio.run(call.guard({"type": "websocket", "path": "/", "headers": []}, send, send))  # type: ignore[arg-type]
    assert call.sent == [{"type": "websocket.close", "code": 1008}]
