"""The HTTP client of the command line: one call for each thing a command wants, every failure a CliError."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from app.cli.errors import CliError, Exit
from app.cli.sse import ServerEvent, read_events, split_lines

CONNECT_S = 5.0
READ_S = 600.0  # the service sets deadlines; this only bounds a connection that died in silence
JOB_READ_S = 60.0  # of a job's events: the service sends a ping more often than this
LATE_S = 30.0  # what an answer may take beyond its own deadline
PAGE = 100

CONTENT_TYPES = {".csv": "text/csv", ".jsonl": "application/jsonl", ".ndjson": "application/jsonl"}


class ChorusClient:
    """A connection to a running service. Close it, or use it as a context manager."""

    def __init__(self, url: str, key: str | None = None, *, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        host = _host_of(self.url)
        if key is not None and not key.strip().isascii():
            raise CliError("the key holds characters that no key has", Exit.USAGE, fix="set --key or CHORUS_API_KEY")
        local = host in ("localhost", "127.0.0.1", "::1")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {key.strip()}"} if key else {},
            timeout=httpx.Timeout(READ_S, connect=CONNECT_S),
            transport=transport,
            trust_env=not local,  # a proxy of the environment is never the way to this machine
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def generate(self, ref: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", f"/v1/tasks/{_part(ref)}/generate", json=body, timeout=_timeout_of(body))

    def stream(self, ref: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer; an error after the first byte raises like any other."""
        path = f"/v1/tasks/{_part(ref)}/generate"
        for event in self._events("POST", path, json={**body, "stream": True}, timeout=_timeout_of(body)):
            found = event.json()
            if found.get("error"):
                raise _refusal(found["error"], Exit.FAILED)
            yield found

    def health(self) -> dict[str, Any]:
        return self._call("GET", "/health")

    def tasks(self) -> list[dict[str, Any]]:
        return self._list("/v1/tasks", "name")

    def task(self, name: str) -> dict[str, Any]:
        return self._call("GET", f"/v1/tasks/{_part(name)}")

    def versions(self, task: str) -> list[dict[str, Any]]:
        return self._list(f"/v1/tasks/{_part(task)}/versions", "version")

    def version(self, task: str, number: int) -> dict[str, Any]:
        return self._call("GET", f"/v1/tasks/{_part(task)}/versions/{number}")

    def vectors(self, task: str, number: int, *, words: int) -> dict[str, Any]:
        """Each vector of a version with its norm and its nearest words."""
        return self._call("GET", f"/v1/tasks/{_part(task)}/versions/{number}/vectors?words={words}")

    def leave_one_out(self, task: str, number: int, body: dict[str, Any]) -> dict[str, Any]:
        """A version's score on rows, and without each of its vectors."""
        return self._call("POST", f"/v1/tasks/{_part(task)}/versions/{number}/leave-one-out", json=body)

    def publish(self, task: str, body: dict[str, Any]) -> dict[str, Any]:
        """An adapter or a hand-written prompt as the task's next version."""
        return self._call("POST", f"/v1/tasks/{_part(task)}/versions", json=body)

    def adapter(self, task: str, number: int) -> dict[str, Any]:
        return self._call("GET", f"/v1/tasks/{_part(task)}/versions/{number}/adapter")

    def alias(self, task: str, name: str) -> dict[str, Any]:
        return self._call("GET", f"/v1/tasks/{_part(task)}/aliases/{_part(name)}")

    def move_alias(self, task: str, name: str, target: dict[str, Any], *, expected: int) -> dict[str, Any]:
        """Point an alias to `target` (version, split or ensemble) if its revision is `expected` (0: it must be new)."""
        headers = {"if-match": f'"{expected}"'} if expected else {"if-none-match": "*"}
        path = f"/v1/tasks/{_part(task)}/aliases/{_part(name)}"
        return self._call("PUT", path, json=target, headers=headers)

    def upload(self, name: str, file: Path) -> dict[str, Any]:
        kind = CONTENT_TYPES.get(file.suffix.lower())
        if kind is None:
            raise CliError(f"{file.name}: rows come as .jsonl or .csv", Exit.USAGE)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise CliError(f"cannot read {file}: {error.strerror}", Exit.USAGE) from None
        return self._call("PUT", f"/v1/datasets/{_part(name)}", content=content, headers={"content-type": kind})

    def train(self, body: dict[str, Any], *, idempotency_key: str | None = None) -> dict[str, Any]:
        headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
        return self._call("POST", "/v1/train", json=body, headers=headers)

    def jobs(self, limit: int) -> list[dict[str, Any]]:
        page = self._call("GET", "/v1/train", params={"limit": limit})
        return list(page["data"])

    def job(self, job_id: str) -> dict[str, Any]:
        return self._call("GET", f"/v1/train/{_part(job_id)}")

    def cancel_job(self, job_id: str) -> dict[str, Any]:
        return self._call("POST", f"/v1/train/{_part(job_id)}/cancel")

    def job_events(self, job_id: str, *, after: str | None) -> Iterator[ServerEvent]:
        """One connection's worth of a job's events, from behind `after`; ends when the job or the connection does."""
        headers = {"last-event-id": after} if after else {}
        timeout = httpx.Timeout(JOB_READ_S, connect=CONNECT_S)
        return self._events("GET", f"/v1/train/{_part(job_id)}/events", headers=headers, timeout=timeout)

    def _list(self, path: str, place: str) -> list[dict[str, Any]]:
        """All pages of a list; `place` is the member that `after` continues behind."""
        found: list[dict[str, Any]] = []
        while True:
            after = {"after": found[-1][place]} if found else {}
            page = self._call("GET", path, params={"limit": PAGE, **after})
            found += page["data"]
            if not page["has_more"] or not page["data"]:
                return found

    def _call(self, method: str, path: str, **rest: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **rest)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        except ValueError as error:
            raise _unsendable(error) from None
        return _read(response)

    def _events(self, method: str, path: str, **rest: Any) -> Iterator[ServerEvent]:
        headers = {"accept": "text/event-stream", **rest.pop("headers", {})}
        try:
            with self._http.stream(method, path, headers=headers, **rest) as response:
                if response.status_code >= 400:
                    response.read()
                    _read(response)
                yield from read_events(split_lines(response.iter_text()))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        except ValueError as error:
            raise _unsendable(error) from None

    def _unreachable(self, error: httpx.HTTPError) -> CliError:
        if isinstance(error, httpx.ConnectError):
            return CliError(
                f"nothing answers at {self.url}", Exit.UNREACHABLE, fix="start it: chorus up (or set --url)"
            )
        if isinstance(error, httpx.TimeoutException):
            return CliError(f"{self.url} did not answer in time", Exit.UNREACHABLE, fix="chorus doctor")
        return CliError(f"the connection to {self.url} broke: {error}", Exit.UNREACHABLE, fix="try again")


def _host_of(url: str) -> str:
    """The host of an address that requests can go to. Raises CliError."""
    try:
        httpx.URL(url)
        parts = urlsplit(url)
        host = parts.hostname if parts.scheme in ("http", "https") and parts.port != 0 else None
    except (ValueError, httpx.InvalidURL):
        host = None
    if not host:
        raise CliError(
            f"{url!r} is not an address like http://127.0.0.1:8000", Exit.USAGE, fix="set --url or CHORUS_URL"
        )
    return host


def _timeout_of(body: dict[str, Any]) -> httpx.Timeout:
    """How long to wait for the next byte of an answer: its first may take as long as its deadline allows."""
    return httpx.Timeout(max(READ_S, body.get("timeout_s", 0.0) + LATE_S), connect=CONNECT_S)


def _unsendable(error: ValueError) -> CliError:
    """For a header or body that cannot be written down, e.g. half a surrogate pair."""
    fix = "write it as UTF-8" if isinstance(error, UnicodeError) else None
    return CliError(f"the request cannot be sent: {error}", Exit.USAGE, fix=fix)


def _part(text: str) -> str:
    """`text` as one part of a path."""
    return quote(text, safe="@:")


def _read(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer. Raises CliError for an error, and for what is not this service's answer."""
    try:
        found = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        found = None
    if response.status_code >= 400 and isinstance(found, dict) and isinstance(found.get("error"), dict):
        raise _refusal(found["error"], _exit_of(response.status_code), retry_after=response.headers.get("retry-after"))
    if response.status_code >= 300 or not isinstance(found, dict):
        raise CliError(
            f"{response.request.url.host} answered {response.status_code} {response.reason_phrase}, not as Chorus does",
            Exit.UNREACHABLE,
            fix="check --url",
        )
    return found


def _exit_of(status: int) -> Exit:
    return Exit.UNREACHABLE if status == 429 or status >= 500 else Exit.REFUSED


def _refusal(error: dict[str, Any], exit_code: Exit, *, retry_after: str | None = None) -> CliError:
    fixes = {
        "unauthorized": "set --key or CHORUS_API_KEY",
        "insufficient_scope": "use a key with that scope: chorus keys create --scope …",
        "task_not_found": "chorus tasks",
        "version_not_found": "chorus versions TASK",
        "alias_not_found": "chorus alias TASK",
        "job_not_found": "chorus jobs",
        "revision_mismatch": "someone else moved it: look again with chorus alias TASK",
    }
    fix = fixes.get(str(error.get("code"))) or (f"try again in {retry_after} s" if retry_after else None)
    return CliError(str(error.get("message", "unknown error")), exit_code, fix=fix, detail=error)
