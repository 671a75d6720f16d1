"""A small HTTP server in the place of the service: it answers what a test says, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from app.cli import main

JSON_TYPE = "application/json"


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class FakeService:
    """`answers["GET /path"]` is a list of answers, of which the last one stays: (status, body, headers)."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    answers: dict[str, list[tuple[int, Any, dict[str, str]]]] = field(default_factory=dict)

    def on(self, call: str, body: Any, *, status: int = 200, **headers: str) -> None:
        self.answers.setdefault(call, []).append((status, body, headers))

    def refuse(self, call: str, status: int, code: str, message: str = "no", **headers: str) -> None:
        error = {"code": code, "message": message, "param": "input", "type": "x", "request_id": "req-1"}
        self.on(call, {"error": error}, status=status, **headers)

    def take(self, call: str) -> tuple[int, Any, dict[str, str]]:
        prepared = self.answers.get(call) or [(404, {"error": {"code": "not_found", "message": call}}, {})]
        return prepared.pop(0) if len(prepared) > 1 else prepared[0]


@pytest.fixture
def service() -> Iterator[FakeService]:
    fake = FakeService()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            fake.asked.append(Asked(self.command, self.path, headers, self.rfile.read(length)))
            status, body, extra = fake.take(f"{self.command} {self.path.partition('?')[0]}")
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"content-type": JSON_TYPE, "content-length": str(len(content)), **extra}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = answer  # noqa: N815  (the base class's names)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield fake
    server.shutdown()
    server.server_close()


@dataclass
class Ran:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def chorus(
    service: FakeService, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """Run a command line against the fake service."""
    monkeypatch.setenv("CHORUS_URL", service.url)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("CHORUS_API_KEY", raising=False)

    def run(*argv: str) -> Ran:
        capsys.readouterr()
        code = main(argv)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
