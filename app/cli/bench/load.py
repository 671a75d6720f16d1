"""Sends a load and times it: a closed loop of clients, or an open loop of arrivals that wait for nobody.

It shares the machine with what it measures, so it does little: bodies are made just before they are sent, only the last
event of a stream is parsed, nothing is printed from here. What it costs all the same is measured (`Run.cpu_s`).
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from app.cli.bench.outcomes import Outcome, Run
from app.cli.bench.workload import Shot

CONNECT_S = 5.0
READ_S = 660.0  # the service ends every request within its own deadline; this only bounds a silence
MAX_IN_FLIGHT = 1024  # an open loop beyond this starts late, and says so
PAUSE_S = 0.5  # after a connection failed
JSON = {"content-type": "application/json"}
DONE = b"data: [DONE]"


class Budget:
    """How much is to be sent: until `seconds` have passed or `requests` were taken, whichever is given."""

    def __init__(self, *, seconds: float | None, requests: int | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._left = requests

    def take(self, at: float | None = None) -> bool:
        """Take one request that starts `at` (now), if there is one left."""
        if self._left == 0 or self.left_s(at) <= 0:
            return False
        if self._left is not None:
            self._left -= 1
        return True

    def left_s(self, at: float | None = None) -> float:
        return float("inf") if self._end is None else self._end - (time.monotonic() if at is None else at)


def arrivals(rate: float, dice: random.Random) -> Iterator[float]:
    """Seconds from the start at which requests of a Poisson process of `rate` a second arrive."""
    at = 0.0
    while True:
        at += dice.expovariate(rate)
        yield at


@asynccontextmanager
async def connection(url: str, key: str | None) -> AsyncIterator[httpx.AsyncClient]:
    """Connections to one service and no other: redirects are not followed, no proxy leads to this machine."""
    local = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
    async with httpx.AsyncClient(
        base_url=url,
        headers={"authorization": f"Bearer {key.strip()}"} if key else {},
        timeout=httpx.Timeout(READ_S, connect=CONNECT_S, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        trust_env=not local,
    ) as http:
        yield http


class Load:
    """One measured load over open connections. `seen` is called with every outcome."""

    def __init__(
        self, http: httpx.AsyncClient, shots: Iterator[Shot], *, seen: Callable[[Outcome], None] = lambda _: None
    ) -> None:
        self._http, self._shots, self._seen = http, shots, seen
        self.run = Run()

    async def closed(self, clients: int, budget: Budget) -> Run:
        """Each of `clients` sends its next request when the last is answered; a Retry-After is obeyed."""
        with self._cpu_counted():
            await asyncio.gather(*(self._client(budget) for _ in range(clients)))
        return self.run

    async def open(self, rate: float, budget: Budget, *, seed: int) -> Run:
        """Requests arrive at `rate` a second, whatever becomes of them; a Retry-After is counted, not obeyed."""
        dice = random.Random(seed)  # noqa: S311  (a load is no secret)
        places = asyncio.Semaphore(MAX_IN_FLIGHT)
        began = time.monotonic()
        with self._cpu_counted():
            async with asyncio.TaskGroup() as group:
                for after in arrivals(rate, dice):
                    due = began + after
                    if not budget.take(due):
                        break
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    await places.acquire()
                    group.create_task(self._arrival(due, places))
        return self.run

    async def _client(self, budget: Budget) -> None:
        while budget.take():
            outcome = await self._send(next(self._shots), time.monotonic())
            pause = min(_pause(outcome), budget.left_s())
            if pause > 0:
                if outcome.retry_after_s is not None:
                    self.run.waits += 1
                    self.run.waited_s += pause
                await asyncio.sleep(pause)

    async def _arrival(self, due: float, places: asyncio.Semaphore) -> None:
        try:
            await self._send(next(self._shots), due)
        finally:
            places.release()

    async def _send(self, shot: Shot, due: float) -> Outcome:
        outcome = Outcome(shot.refs, due, time.monotonic())
        try:
            await (self._stream if shot.stream else self._whole)(shot, outcome)
        except httpx.HTTPError as error:
            outcome.codes = (_connection_code(error),) * len(shot.refs)
        outcome.ended = time.monotonic()
        self.run.outcomes.append(outcome)
        self._seen(outcome)
        return outcome

    async def _whole(self, shot: Shot, outcome: Outcome) -> None:
        response = await self._http.post(shot.path, content=shot.body, headers=JSON)
        _read(response, response.content, outcome)

    async def _stream(self, shot: Shot, outcome: Outcome) -> None:
        async with self._http.stream("POST", shot.path, content=shot.body, headers=JSON) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                _read(response, await response.aread(), outcome)
                return
            last, rest, before = b"", b"", 0.0
            async for chunk in response.aiter_raw():
                now = time.monotonic()
                *events, rest = (rest + chunk).split(b"\n\n")
                for event in events:
                    if not event.startswith(b"data:") or event == DONE:
                        continue
                    if outcome.first is None:
                        outcome.first = now
                    else:
                        outcome.gaps.append(now - before)
                    last, before = event, now
            _settle(_parsed(last.removeprefix(b"data:")), outcome)

    def _cpu_counted(self) -> _CpuCount:
        return _CpuCount(self.run)


class _CpuCount:
    """Adds the processor time of this process, while the block runs, to a run."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __enter__(self) -> None:
        self._began = time.process_time()

    def __exit__(self, *_: object) -> None:
        self._run.cpu_s += time.process_time() - self._began


def _pause(outcome: Outcome) -> float:
    if outcome.retry_after_s is not None:
        return outcome.retry_after_s
    return PAUSE_S if "connect_failed" in outcome.codes else 0.0


def _read(response: httpx.Response, content: bytes, outcome: Outcome) -> None:
    """An answer that came whole: outputs, or an error for all rows."""
    body = _parsed(content)
    outcome.retry_after_s = _seconds(response.headers.get("retry-after"))
    outputs = body.get("outputs")
    if response.status_code == 200 and isinstance(outputs, list) and len(outputs) == len(outcome.refs):
        outcome.codes = tuple(_code(output) for output in outputs)
        outcome.tokens = sum(_completion(output) for output in outputs)
        return
    error = body.get("error")
    code = str(error.get("code")) if isinstance(error, dict) else f"http_{response.status_code}"
    outcome.codes = (code,) * len(outcome.refs)


def _settle(last: dict[str, Any], outcome: Outcome) -> None:
    """A stream by its last event; one that ends without a reason was cut."""
    outcome.codes = (_code(last) or (None if last.get("finish_reason") else "stream_cut"),)
    outcome.tokens = _completion(last)


def _code(output: dict[str, Any]) -> str | None:
    error = output.get("error")
    return str(error.get("code", "error")) if isinstance(error, dict) else None


def _completion(output: dict[str, Any]) -> int:
    usage = output.get("usage")
    return int(usage.get("completion_tokens", 0)) if isinstance(usage, dict) else 0


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:
        return None


def _connection_code(error: httpx.HTTPError) -> str:
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        return "connect_failed"
    return "no_answer_in_time" if isinstance(error, httpx.TimeoutException) else "connection_lost"
