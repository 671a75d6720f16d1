"""The disk is full when a job publishes: it waits for room, then says what it was; what was committed is a version."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from app.settings import Settings
from app.training import run, session
from app.training.job import Job
from app.training.jobs import JobStore
from app.training.session import Context, Session
from app.training.trainer import Interrupted
from prompt_store import PromptStore
from tests.full_disk import refuse_writes
from tests.training_data import short_request


@pytest.fixture
def carry_out(context: Context, jobs: JobStore, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Job]:
    """One attempt as the trainer's process makes it; the job as it then is."""
    monkeypatch.setattr(run, "_context", lambda *_: context)
    monkeypatch.setattr(session, "PATIENCE_S", 0.5)
    monkeypatch.setattr(session, "RETRY_S", 0.05)

    def carry_out(job_id: str) -> Job:
        number = context.records.claim(job_id, "here")
        settings = Settings.model_validate({"redis_url": "unix:///nothing"})
        assert run.train(settings, context.records, job_id, number, threading.Event()) == run.ENDED
        return jobs.get(job_id)

    return carry_out


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_at_publish_ends_the_job_as_that_and_leaves_nothing(
    carry_out: Callable[[str], Job],
    attempt: Callable[..., Job],
    jobs: JobStore,
    store: PromptStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    attempt()
    blobs = list((tmp_path / "blobs" / "blobs").iterdir())
    job_id = jobs.submit(short_request(steps=8))[0].id
    with monkeypatch.context() as patch:
        refused = refuse_writes(patch, tmp_path / "blobs", code=code)
        job = carry_out(job_id)
        assert refused() > 2, "it gave up at once"
    assert (job.status, job.error and job.error.code) == ("failed", "storage_full")
    assert job.error is not None
    assert str(tmp_path) not in job.error.message
    assert store.find_publication(job_id) is None
    assert [version.number for version in store.list_versions("mood")[0]] == [1]
    assert store.get_alias("mood", "prod").version == 1
    assert list((tmp_path / "blobs" / "blobs").iterdir()) == blobs
    assert store.fsck().ok


def test_room_that_comes_back_within_the_patience_is_used(
    carry_out: Callable[[str], Job],
    jobs: JobStore,
    store: PromptStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = refuse_writes(monkeypatch, tmp_path / "blobs", times=3)
    job = carry_out(jobs.submit(short_request())[0].id)
    assert (refused(), job.status, job.error) == (3, "succeeded", None)
    assert len(store.list_versions("mood")[0]) == 1


def test_disk_that_fills_up_behind_the_commit_does_not_take_the_version_from_its_job(
    carry_out: Callable[[str], Job],
    jobs: JobStore,
    store: PromptStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = jobs.submit(short_request())[0].id
    with monkeypatch.context() as patch:
        refuse_writes(patch, tmp_path / "blobs" / "records")
        job = carry_out(job_id)
    (version,) = store.find_publications(job_id)
    assert (job.status, job.result and job.result.version) == ("succeeded", version.number)
    assert not store.fsck().ok
    assert store.rebuild().ok
    assert store.list_versions("mood")[0] == [version]


def test_full_disk_of_a_worker_that_is_stopping_leaves_the_job_to_another(
    context: Context, jobs: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "RETRY_S", 0.05)
    refuse_writes(monkeypatch, tmp_path / "blobs")
    job_id = jobs.submit(short_request())[0].id
    real = Session._finish
    monkeypatch.setattr(Session, "_finish", lambda *of: (context.stop.set(), real(*of)))  # type: ignore[func-returns-value]
    with pytest.raises(Interrupted):
        Session(context, job_id, context.records.claim(job_id, "here")).run()
    assert jobs.get(job_id).status == "publishing"
