"""The Redis client of training, what of its failures is an outage, and where they become an error of the service."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ClusterDownError, NoPermissionError, OutOfMemoryError, ReadOnlyError

from app.errors import StoreDown
from prompt_store import StorageFailed, StoreUnavailable
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

AWAY = (redis.ConnectionError, redis.TimeoutError)

REFUSES = (ClusterDownError, NoPermissionError, OutOfMemoryError, ReadOnlyError)
"""What a server answers that takes no writes, or no commands at all, for a reason of its own: no fault of the call."""

REFUSAL_CODES = ("BUSY ", "MISCONF ", "NOREPLICAS ")
"""The same, where the client has no class for the answer but gives it as it came."""

log = logging.getLogger(__name__)


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


def is_outage(error: BaseException) -> bool:
    """Whether the same call may work later: Redis does not answer, or answers and refuses (its memory is full, its disk
    fails, it follows another server), or the registry behind it is out of reach. Not a command that is wrong, and not
    our own disk, which no other attempt would find better."""
    if isinstance(error, StoreUnavailable):
        return not isinstance(error, StorageFailed)
    if isinstance(error, AWAY + REFUSES):
        return True
    answer = str(error).rpartition("caused error: ")[2]  # a pipeline says first which of its commands it was
    return isinstance(error, redis.ResponseError) and answer.startswith(REFUSAL_CODES)


@contextmanager
def despite_outage(left_undone: str) -> Iterator[None]:
    """Go on where Redis is away or refuses; the log says what was left undone. Any other error is raised."""
    try:
        yield
    except redis.RedisError as error:
        if not is_outage(error):
            raise
        log.warning("%s: %s", left_undone, error)


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
