"""How a connection ends when an answer is out before all of its request is in, on a bare socket."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.api import closing
from tests.fakes import make_world
from tests.live import HANG_S, Live, serving

BODY = 1 << 20
HEAD = f"POST /v1/tasks/echo/generate HTTP/1.1\r\nhost: evil.example\r\ncontent-length: {BODY}\r\n\r\n".encode()
"""Refused by its host name, without a look at the body."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> Iterator[Live]:
    world = make_world(tmp_path_factory.mktemp("closing"), redis_server_url)
    with serving(world.app) as live:
        yield live


@pytest.fixture
def wire(live: Live) -> Iterator[socket.socket]:
    with socket.create_connection((live.host, live.port), timeout=HANG_S) as wire:
        wire.sendall(HEAD)
        assert wire.recv(12, socket.MSG_PEEK | socket.MSG_WAITALL) == b"HTTP/1.1 421"
        yield wire


def read_to_end(wire: socket.socket) -> bytes:
    return b"".join(iter(lambda: wire.recv(1 << 16), b""))


def test_refused_caller_who_goes_on_sending_reads_the_whole_refusal(wire: socket.socket) -> None:
    for _ in range(16):
        wire.sendall(b"x" * (BODY // 16))
        time.sleep(0.01)  # a reset would arrive before the next piece
    said = read_to_end(wire)
    assert b"connection: close" in said
    assert said.endswith(b"}")


def test_refused_caller_sees_the_end_at_once(wire: socket.socket) -> None:
    began = time.monotonic()
    assert b"misdirected_request" in read_to_end(wire)
    assert time.monotonic() - began < closing.LINGER_S / 2


def cut_off_after(wire: socket.socket, pause_s: float, piece: bytes) -> int:
    """Bytes taken until the connection is reset."""
    sent, deadline = 0, time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        try:
            sent += wire.send(piece)
        except (ConnectionResetError, BrokenPipeError):
            return sent
        time.sleep(pause_s)
    raise AssertionError("never cut off")


def test_caller_who_never_ends_is_cut_off(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "LINGER_S", 0.2)
    with socket.create_connection((live.host, live.port), timeout=HANG_S) as wire:
        wire.sendall(HEAD)
        cut_off_after(wire, 0.01, b"x")


def test_caller_who_sends_without_end_is_cut_off(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "LINGER_BYTES", 1 << 20)
    monkeypatch.setattr(closing, "LINGER_S", HANG_S)
    with socket.create_connection((live.host, live.port), timeout=HANG_S) as wire:
        wire.sendall(HEAD)
        assert 1 << 20 <= cut_off_after(wire, 0, b"x" * (1 << 16)) < 64 << 20


def test_server_that_stops_waits_for_nobody_who_was_refused(
    tmp_path: Path, redis_server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "LINGER_S", HANG_S)
    with serving(make_world(tmp_path, redis_server_url).app) as live:
        wire = socket.create_connection((live.host, live.port), timeout=HANG_S)
        wire.sendall(HEAD)
        assert wire.recv(12).startswith(b"HTTP/1.1")
        began = time.monotonic()
    assert time.monotonic() - began < 4
    wire.close()
