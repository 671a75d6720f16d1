"""A client without manners: it sends bytes as they are, and reads what comes until a deadline."""

from __future__ import annotations

import re
import select
import socket
import time
from contextlib import suppress
from typing import Any

import httpx

from tests.hostile.marks import MARK
from tests.live import HANG_S, Live

SHAPE = {"code", "message", "param", "type", "request_id"}
_NO_BODY = re.compile(rb"HTTP/1\.1 (1..|204|304) ")


def request(method: str, path: str, headers: list[tuple[str, str]] = [], body: bytes = b"") -> bytes:  # noqa: B006
    """An HTTP/1.1 message; `headers` may replace the host."""
    lines = [f"{method} {path} HTTP/1.1"]
    if "host" not in dict(headers):
        lines.append("host: 127.0.0.1")
    lines += [f"{name}: {value}" for name, value in headers]
    if body or method in ("POST", "PUT"):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def ask(live: Live, message: bytes) -> httpx.Response:
    """Send bytes, read one answer; fails where it is none."""
    said = exchange(live, message)
    head, _, body = said.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    assert status_line.startswith("HTTP/1.1 "), (status_line, body[:200])
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return httpx.Response(int(status_line.split()[1]), headers=headers, content=body)


def check_refusal(answer: httpx.Response, status: int | None = None) -> dict[str, Any]:
    """4xx, `status` where one is given, in the one shape, short, and without what was sent."""
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    assert status in (None, answer.status_code), (status, answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == SHAPE
    assert error["code"]
    assert error["message"]
    assert MARK.lower() not in (answer.text + str(answer.headers)).lower(), answer.text
    assert len(answer.content) < 3000
    return error


def exchange(live: Live, message: bytes) -> bytes:
    """All the server says until it has answered once or closes, however much of `message` it was willing to read."""
    with _connected(live) as connection:
        _send(connection, message)
        said, deadline = b"", time.monotonic() + HANG_S
        while not complete(said):
            received = _receive(connection)
            assert time.monotonic() < deadline, "the server neither answers nor closes"
            if not received:
                break
            said += received
        return said


def converse(live: Live, message: bytes, *, quiet_s: float) -> bytes:
    """All the server says until nothing came for `quiet_s`; then we leave, and it must close."""
    with _connected(live) as connection:
        _send(connection, message)
        said = b""
        while select.select([connection], [], [], quiet_s)[0]:
            received = _receive(connection)
            if not received:
                return said
            said += received
        with suppress(OSError):  # it was quicker
            connection.shutdown(socket.SHUT_WR)
        while received := _receive(connection):
            said += received
        return said


def _connected(live: Live) -> socket.socket:
    return socket.create_connection((live.host, live.port), timeout=HANG_S)


def _send(connection: socket.socket, message: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # it had heard enough; its answer may still be there
        connection.sendall(message)


def _receive(connection: socket.socket) -> bytes:
    """What comes next, nothing once it has closed. Raises TimeoutError where it does neither."""
    try:
        return connection.recv(65536)
    except (ConnectionResetError, BrokenPipeError):
        return b""


def complete(said: bytes) -> bool:
    head, end, body = said.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return bool(end) and len(body) >= int(line.partition(b":")[2])
    return bool(end) and bool(_NO_BODY.match(head))


def statuses(said: bytes) -> list[int]:
    """Of every answer in what a connection said; fails where it is not answers alone."""
    found = []
    while said:
        head, end, rest = said.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.1 ([1-5]\d\d) ", head)
        assert status is not None, said[:200]
        assert end, said[:200]
        found.append(int(status[1]))
        length = re.search(rb"(?mi)^content-length: *(\d+)\r?$", head)
        said = rest[int(length[1]) if length else 0 :]
    return found
