"""Sends a load and times it: a closed loop of clients, or an open loop of arrivals that wait for nobody.

It shares the machine with what it measures, so it does little: bodies are made just before they are sent, only the last
event of a stream is parsed, nothing is printed from here. What it costs all the same is measured (`Run.cpu_s`).
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from app.cli.bench.outcomes import Outcome, Run
from app.cli.bench.wire import ConnectFailed, Reply, Wire
from app.cli.bench.workload import Shot

READ_S = 660.0  # the service ends every request within its own deadline; this only bounds a silence
MAX_IN_FLIGHT = 1024  # an open loop beyond this starts late, and says so
PAUSE_S = 0.5  # after a connection failed
DONE = b"data: [DONE]"
CUT_SHORT = ("timeout", "drain", "cancelled", "error")


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


class Load:
    """One measured load over open connections. `seen` is called with every outcome."""

    def __init__(self, wire: Wire, shots: Iterator[Shot], *, seen: Callable[[Outcome], None] = lambda _: None) -> None:
        self._wire, self._shots, self._seen = wire, shots, seen
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
            async with asyncio.timeout(READ_S), self._wire.ask("POST", shot.path, shot.body) as reply:
                await self._take(reply, outcome)
        except (OSError, EOFError, ValueError) as error:
            outcome.codes = (_connection_code(error),) * len(shot.refs)
        outcome.ended = time.monotonic()
        self.run.outcomes.append(outcome)
        self._seen(outcome)
        return outcome

    async def _take(self, reply: Reply, outcome: Outcome) -> None:
        if not reply.headers.get("content-type", "").startswith("text/event-stream"):
            _read(reply, await reply.read(), outcome)
            return
        last, rest, before = b"", b"", 0.0
        async for chunk in reply.chunks():
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


def _read(reply: Reply, content: bytes, outcome: Outcome) -> None:
    """An answer that came whole: outputs, or an error for all rows."""
    body = _parsed(content)
    outcome.retry_after_s = _seconds(reply.headers.get("retry-after"))
    outputs = body.get("outputs")
    if reply.status == 200 and isinstance(outputs, list) and len(outputs) == len(outcome.refs):
        outcome.codes = tuple(_code(output) for output in outputs)
        outcome.tokens = sum(_completion(output) for output in outputs)
        return
    error = body.get("error")
    code = str(error.get("code")) if isinstance(error, dict) else f"http_{reply.status}"
    outcome.codes = (code,) * len(outcome.refs)


def _settle(last: dict[str, Any], outcome: Outcome) -> None:
    """A stream by its last event; one that ends without a reason was cut."""
    outcome.codes = (_code(last) or (None if last.get("finish_reason") else "stream_cut"),)
    outcome.tokens = _completion(last)


def _code(output: dict[str, Any]) -> str | None:
    """Why a row failed: its error, or why it has less than there would have been."""
    error, reason = output.get("error"), output.get("finish_reason")
    if isinstance(error, dict):
        return str(error.get("code", "error"))
    return str(reason) if reason in CUT_SHORT else None


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


def _connection_code(error: Exception) -> str:
    if isinstance(error, ConnectFailed):
        return "connect_failed"
    return "no_answer_in_time" if isinstance(error, TimeoutError) else "connection_lost"
