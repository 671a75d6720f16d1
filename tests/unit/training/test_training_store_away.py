"""Redis or the registry is away while an attempt reads what it needs: it waits, then leaves the job to another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
from redis.exceptions import OutOfMemoryError

from app.errors import Conflict
from app.settings import Settings
from app.training import run, session
from app.training.job import Job
from app.training.jobs import JobStore
from app.training.preparing import Preparation
from app.training.records import GIVE_UP_AFTER
from app.training.session import Context, Session
from app.training.supervision import give_up
from prompt_store import StoreUnavailable
from tests.training_data import short_request

SWEEP = {"sweep": {"seed": [1, 2]}, "hyperparameters": {"batch_size": 4, "n_epochs": 2, "num_virtual_tokens": 4}}

AWAY = [
    pytest.param(StoreUnavailable("away"), id="registry"),
    pytest.param(redis.ConnectionError("refused"), id="redis"),
    pytest.param(OutOfMemoryError("command not allowed"), id="redis is full"),
]

Fail = Callable[[str, Exception, int], None]


@pytest.fixture
def fail(context: Context, monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Let a call of an attempt fail so many times."""
    owners = {"plan": context.records, "read": context.datasets, "get_task": context.store, "begin": Preparation}

    def fail(method: str, error: Exception, times: int) -> None:
        real, left = getattr(owners[method], method), iter([True] * times)

        def call(*of: Any, **more: Any) -> Any:
            if next(left, False):
                raise error
            return real(*of, **more)

        monkeypatch.setattr(owners[method], method, call)

    monkeypatch.setattr(run, "_context", lambda *_: context)
    monkeypatch.setattr(session, "RETRY_S", 0.01)
    return fail


def carry_out(context: Context, job_id: str) -> int:
    """One attempt as the trainer's process makes it; its exit code."""
    number = context.records.claim(job_id, "here")
    settings = Settings.model_validate({"redis_url": "unix:///nothing"})
    return run.train(settings, context.records, job_id, number, threading.Event())


@pytest.mark.parametrize("error", AWAY)
@pytest.mark.parametrize("method", ["plan", "read", "begin", "get_task"])
def test_store_away_too_long_for_a_read_leaves_the_job_to_a_later_attempt(
    context: Context, jobs: JobStore, fail: Fail, monkeypatch: pytest.MonkeyPatch, method: str, error: Exception
) -> None:
    monkeypatch.setattr(session, "PATIENCE_S", 0.0)
    job_id = jobs.submit(short_request(steps=2))[0].id
    fail(method, error, 1)
    assert carry_out(context, job_id) == run.STOPPED
    assert not jobs.get(job_id).ended
    assert context.records.take_back(job_id, attempt=1, reason="the trainer ended") == "queued"
    assert carry_out(context, job_id) == run.ENDED
    assert jobs.get(job_id).status == "succeeded"


@pytest.mark.parametrize("asked", [{"steps": 2}, SWEEP], ids=["one", "sweep"])
@pytest.mark.parametrize("method", ["plan", "read", "begin", "get_task"])
def test_store_away_for_a_moment_costs_no_attempt(
    context: Context, jobs: JobStore, fail: Fail, method: str, asked: dict[str, Any]
) -> None:
    job_id = jobs.submit(short_request(**asked))[0].id
    fail(method, StoreUnavailable("away"), 2)
    assert carry_out(context, job_id) == run.ENDED
    job: Job = jobs.get(job_id)
    assert (job.status, job.attempt) == ("succeeded", 1)


def test_store_away_while_members_of_a_sweep_begin_leaves_the_job_to_a_later_attempt(
    context: Context, jobs: JobStore, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PATIENCE_S", 0.0)
    job_id = jobs.submit(short_request(**SWEEP))[0].id
    fail("begin", StoreUnavailable("away"), 10**6)
    assert carry_out(context, job_id) == run.STOPPED
    assert not jobs.get(job_id).ended


def test_store_that_stays_away_fails_the_job_in_the_end(
    context: Context, jobs: JobStore, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PATIENCE_S", 0.0)
    job_id = jobs.submit(short_request())[0].id
    fail("read", StoreUnavailable("away"), 10**6)
    replies = []
    for number in range(1, GIVE_UP_AFTER + 1):
        assert carry_out(context, job_id) == run.STOPPED
        replies.append(context.records.take_back(job_id, attempt=number, reason="the trainer ended"))
    assert replies == ["queued"] * (GIVE_UP_AFTER - 1) + ["exhausted"]
    give_up(context.records, context.store, job_id, attempt=None, left=True)
    error = jobs.get(job_id).error
    assert error is not None
    assert error.code == "store_unavailable"


def test_end_that_cannot_be_written_leaves_the_job_to_a_later_attempt(
    context: Context, jobs: JobStore, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    def conflict(*_: Any) -> None:
        raise Conflict("the task changed")

    def refuse(*_: Any, **__: Any) -> None:
        raise OutOfMemoryError("command not allowed")

    monkeypatch.setattr(Session, "run", conflict)
    job_id = jobs.submit(short_request())[0].id
    with monkeypatch.context() as patch:
        patch.setattr(context.records, "move", refuse)
        assert carry_out(context, job_id) == run.STOPPED
    assert jobs.get(job_id).status == "running"
