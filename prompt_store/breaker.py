"""A circuit breaker for clients of one Redis: after a few failures in a row nobody waits for it any more.

Closed, every attempt goes through. `FAILURES` attempts in a row without an answer open it: then every call, and every
further attempt of a call that is under way, fails at once. After `REST_S` one attempt may try (half open): an answer
closes it, another failure begins a new rest. An error that the server itself replies is an answer.

It is built into the client's retries, so that whatever asks through the client is guarded, and probes, too: a replica
asks for events all the time, so the circuit closes soon after the server is back, whether users ask or not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import redis
from redis.backoff import AbstractBackoff
from redis.retry import Retry

T = TypeVar("T")
FAILURES = 4
REST_S = 0.5


class CircuitOpen(redis.ConnectionError):
    """Not asked at all: the server has not answered lately."""


class Breaker:
    """Thread-safe; shared by all clients of one server, and by the copies of their retries that redis-py makes."""

    def __init__(
        self, *, failures: int = FAILURES, rest_s: float = REST_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.opened = 0
        self._most = failures
        self._rest_s = rest_s
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._rests_until: float | None = None
        self._probing = False
        self._inside = threading.local()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @property
    def open(self) -> bool:
        """Whether calls are refused, but for a probe."""
        return self._rests_until is not None

    def readings(self) -> dict[str, float]:
        """For the metrics page."""
        return {"redis_circuit_open": float(self.open), "redis_circuit_opened_total": self.opened}

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """One attempt to get an answer; raises CircuitOpen instead of beginning it. Attempts within one belong to it: a
        connection that is accepted is no answer yet."""
        if getattr(self._inside, "attempt", False):
            yield
            return
        probe = self._enter()
        self._inside.attempt = True
        answered = False
        try:
            yield
            answered = True
        except redis.RedisError as error:
            answered = not isinstance(error, redis.ConnectionError | redis.TimeoutError)
            raise
        finally:
            self._inside.attempt = False
            self._leave(answered=answered, probe=probe)

    def _enter(self) -> bool:
        """Whether this attempt is the probe."""
        with self._lock:
            if self._rests_until is None:
                return False
            if self._probing or self._clock() < self._rests_until:
                raise CircuitOpen("the server has not answered lately")
            self._probing = True
            return True

    def _leave(self, *, answered: bool, probe: bool) -> None:
        with self._lock:
            if probe:
                self._probing = False
            if answered:
                self._failures, self._rests_until = 0, None
                return
            self._failures += 1
            if probe:
                self._rests_until = self._clock() + self._rest_s
            elif self._rests_until is None and self._failures >= self._most:
                self._rests_until = self._clock() + self._rest_s
                self.opened += 1


class BreakingRetry(Retry):
    """redis-py's retries, each attempt through a breaker; none is made while it is open."""

    def __init__(self, backoff: AbstractBackoff, retries: int, breaker: Breaker) -> None:
        super().__init__(backoff, retries)
        self._breaker = breaker

    def call_with_retry(
        self,
        do: Callable[[], T],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> T:
        def attempt() -> T:
            with self._breaker.attempt():
                return do()

        def retryable(error: Exception) -> bool:
            return not isinstance(error, CircuitOpen) and (is_retryable is None or is_retryable(error))

        return super().call_with_retry(attempt, fail, retryable, with_failure_count)


def retry_of(backoff: AbstractBackoff, retries: int, breaker: Breaker | None) -> Retry:
    return Retry(backoff, retries) if breaker is None else BreakingRetry(backoff, retries, breaker)
