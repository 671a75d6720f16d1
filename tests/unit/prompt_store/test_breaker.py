"""The circuit opens after failures in a row, lets one probe through at a time, and closes with an answer."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import redis
from redis.backoff import NoBackoff

from prompt_store.breaker import Breaker, BreakingRetry, CircuitOpen


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(failures=3, rest_s=1.0, clock=clock)


def failing() -> None:
    raise redis.TimeoutError


def refusing() -> None:
    raise redis.ResponseError("OOM")


def attempt(breaker: Breaker, do: Callable[[], object] = lambda: None) -> None:
    with breaker.attempt():
        do()


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(redis.TimeoutError):
            attempt(breaker, failing)


def test_circuit_opens_after_failures_in_a_row_and_then_asks_nobody(breaker: Breaker) -> None:
    fail(breaker, 2)
    attempt(breaker)
    fail(breaker, 2)
    assert not breaker.open
    fail(breaker, 1)
    asked: list[int] = []
    with pytest.raises(CircuitOpen):
        attempt(breaker, lambda: asked.append(1))
    assert (breaker.open, asked) == (True, [])
    assert breaker.readings() == {"redis_circuit_open": 1.0, "redis_circuit_opened_total": 1}


def test_errors_that_the_server_replies_do_not_open_it(breaker: Breaker) -> None:
    for _ in range(10):
        with pytest.raises(redis.ResponseError):
            attempt(breaker, refusing)
    assert not breaker.open


def test_open_circuit_rests_then_lets_one_probe_through_and_closes_with_its_answer(
    breaker: Breaker, clock: Clock
) -> None:
    fail(breaker, 3)
    clock.now = 0.99
    with pytest.raises(CircuitOpen):
        attempt(breaker)
    clock.now = 1.0
    refused: list[bool] = []

    def probe() -> None:
        other = threading.Thread(target=lambda: refused.append(is_refused(breaker)))
        other.start()
        other.join()

    attempt(breaker, probe)
    assert refused == [True]
    assert not breaker.open
    attempt(breaker)


def is_refused(breaker: Breaker) -> bool:
    try:
        attempt(breaker)
    except CircuitOpen:
        return True
    return False


def test_probe_that_fails_begins_a_new_rest(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    for start in (1.0, 2.0, 3.0):
        clock.now = start
        fail(breaker, 1)
        clock.now = start + 0.9
        assert is_refused(breaker)
    assert breaker.opened == 1


def test_probe_that_is_answered_with_a_refusal_closes_it_too(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 1.0
    with pytest.raises(redis.ResponseError):
        attempt(breaker, refusing)
    assert not breaker.open


def test_probe_that_breaks_otherwise_gives_its_place_back(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 1.0
    with pytest.raises(KeyError):
        attempt(breaker, lambda: {}["nothing"])
    clock.now = 2.0
    attempt(breaker)
    assert not breaker.open


def test_connection_that_is_accepted_within_an_attempt_is_no_answer(breaker: Breaker) -> None:
    """A server that is stopped still accepts: its system does."""

    def connect_then_hang() -> None:
        attempt(breaker)
        failing()

    for _ in range(3):
        with pytest.raises(redis.TimeoutError):
            attempt(breaker, connect_then_hang)
    assert breaker.open


def test_late_failure_of_a_call_from_before_does_not_lengthen_the_rest(breaker: Breaker, clock: Clock) -> None:
    started, go_on = threading.Event(), threading.Event()

    def late() -> None:
        started.set()
        assert go_on.wait(10)
        failing()

    def run() -> None:
        with pytest.raises(redis.TimeoutError):
            attempt(breaker, late)

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(10)
    fail(breaker, 3)
    clock.now = 0.9
    go_on.set()
    thread.join()
    clock.now = 1.0
    attempt(breaker)
    assert not breaker.open


def test_retries_of_a_call_under_way_end_when_the_circuit_opens(breaker: Breaker) -> None:
    retry = BreakingRetry(NoBackoff(), 10, breaker)
    tried, told = [], []

    def do() -> None:
        tried.append(1)
        failing()

    with pytest.raises(CircuitOpen):
        retry.call_with_retry(do, told.append)
    assert (len(tried), len(told)) == (3, 3)


def test_copies_of_the_retries_share_the_circuit(breaker: Breaker) -> None:
    """redis-py copies them for each connection."""
    copied = copy.deepcopy(BreakingRetry(NoBackoff(), 0, breaker))
    for _ in range(3):
        with pytest.raises(redis.TimeoutError):
            copied.call_with_retry(failing, lambda error: None)
    assert breaker.open


def test_what_must_not_be_retried_is_not(breaker: Breaker) -> None:
    tried: list[int] = []

    def do() -> None:
        tried.append(1)
        failing()

    with pytest.raises(redis.TimeoutError):
        BreakingRetry(NoBackoff(), 5, breaker).call_with_retry(do, lambda error: None, lambda error: False)
    assert tried == [1]
