"""The Redis client of training, and the one place where its failures become an error of the service."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import redis
from redis.backoff import ExponentialWithJitterBackoff

from app.errors import StoreDown
from prompt_store.breaker import Breaker, retry_of
from prompt_store.redis_url import client_from_url

P = ParamSpec("P")
R = TypeVar("R")

SOCKET_TIMEOUT_S = 10.0
"""Longer than any blocking read; see `records.MAX_BLOCK_MS`."""

CALL_TIMEOUT_S = 2.0
"""For whoever never blocks: a caller of the API waits."""

CONNECT_TIMEOUT_S, RETRIES = 2.0, 2
"""Whoever asks retries by its own rules: a training step must not wait long for a Redis that is away."""


def connect(redis_url: str, *, timeout_s: float = SOCKET_TIMEOUT_S, breaker: Breaker | None = None) -> redis.Redis:
    """A client with time limits, for records and for RQ (which needs bytes, not strings). With a `breaker`, calls fail
    at once while the server does not answer."""
    return client_from_url(
        redis_url,
        protocol=2,
        socket_timeout=timeout_s,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=retry_of(ExponentialWithJitterBackoff(base=0.05, cap=0.5), RETRIES, breaker),
    )


def reports_outage(function: Callable[P, R]) -> Callable[P, R]:
    """Raise StoreDown where Redis cannot be reached."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise StoreDown("jobs and data sets are out of reach: Redis does not answer") from error
        except redis.RedisError as error:  # it answers, and refuses: memory full, no right, loading, read-only
            raise StoreDown("jobs and data sets are out of reach: Redis refuses") from error

    return call
