"""What keeps jobs from being lost: the reaper, giving up, and what a worker finds when it takes a job over."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import redis

from app.settings import Settings
from app.training import keys
from app.training.connection import connect
from app.training.job import Progress
from app.training.jobs import JobStore
from app.training.process import environment
from app.training.queue import Dispatcher, open_queue
from app.training.reaper import Reaper
from app.training.records import GIVE_UP_AFTER, JobRecords, job_folder
from app.training.reporter import REPORT_S, STORIES, Reporter
from app.training.supervision import Supervisor
from app.training.trainer import Judgement
from prompt_store import BackboneRef, Fenced, PromptMeta, PromptStore, TaskSpec
from tests.training_data import LEASE_S, short_request


@pytest.fixture
def reaper(records: JobRecords, client: redis.Redis, store: PromptStore, tmp_path: Path) -> Reaper:
    return Reaper(records, Dispatcher(client), store, tmp_path, every_s=0, orphan_grace_s=0)


@pytest.fixture
def job_id(jobs: JobStore) -> str:
    return jobs.submit(short_request())[0].id


def lose(client: redis.Redis, records: JobRecords, job_id: str, *, stalls: int = 0) -> int:
    """A claim whose holder has died, on a job that was lost `stalls` times before."""
    attempt = records.claim(job_id, "w")
    client.delete(open_queue(client).key)
    client.hincrby(keys.job(job_id), "beat", -int(LEASE_S * 2000))
    client.hset(keys.job(job_id), "stalls", stalls)
    return attempt


def publish(store: PromptStore, job_id: str, *, fence: int | None = None) -> None:
    meta = PromptMeta(
        task="mood",
        template="<prompt:1>{text}",
        bos="none",
        method={"type": "prompt_tuning"},
        backbone=BackboneRef(name="m", fingerprint="f" * 64, hidden_size=2),
        num_virtual_tokens=1,
    )
    tensors = {"prompt": np.ones((1, 2), np.float32)}
    spec = TaskSpec(fields=("text",), labels=("bad", "good"))
    store.publish(task="mood", meta=meta, tensors=tensors, publication=job_id, spec=spec, fence=fence)


def test_reaper_queues_a_lost_job_again(
    reaper: Reaper, client: redis.Redis, records: JobRecords, jobs: JobStore, job_id: str
) -> None:
    lose(client, records, job_id)
    reaper.tick()
    job = jobs.get(job_id)
    assert (job.status, job.queue_position) == ("queued", 0)


def test_reaper_takes_blobs_that_no_version_names_out_of_service(reaper: Reaper, store: PromptStore) -> None:
    publish(store, "kept")
    kept = set(store.blobs.digests())
    orphan = store.blobs.put(b"left by a publisher that died")
    reaper.tick()
    assert set(store.blobs.digests()) == kept
    assert list(store.blobs.quarantined()) == [orphan]


def test_reaper_leaves_a_job_alone_whose_worker_lives(
    reaper: Reaper, records: JobRecords, jobs: JobStore, job_id: str
) -> None:
    records.claim(job_id, "w")
    reaper.tick()
    assert jobs.get(job_id).status == "running"


def test_job_lost_too_often_fails(
    reaper: Reaper, client: redis.Redis, records: JobRecords, jobs: JobStore, job_id: str
) -> None:
    lose(client, records, job_id, stalls=GIVE_UP_AFTER - 1)
    reaper.tick()
    job = jobs.get(job_id)
    assert (job.status, job.error and job.error.code) == ("failed", "worker_lost")


def test_frozen_holder_of_a_job_that_was_given_up_publishes_nothing(
    reaper: Reaper, client: redis.Redis, records: JobRecords, jobs: JobStore, store: PromptStore, job_id: str
) -> None:
    attempt = lose(client, records, job_id, stalls=GIVE_UP_AFTER - 1)
    reaper.tick()
    with pytest.raises(Fenced):
        publish(store, job_id, fence=attempt)
    assert jobs.get(job_id).status == "failed"


def test_job_lost_too_often_that_had_published_succeeds(
    reaper: Reaper, client: redis.Redis, records: JobRecords, jobs: JobStore, store: PromptStore, job_id: str
) -> None:
    lose(client, records, job_id, stalls=GIVE_UP_AFTER - 1)
    publish(store, job_id)
    reaper.tick()
    job = jobs.get(job_id)
    assert (job.status, job.result and job.result.version) == ("succeeded", 1)


def test_reaper_removes_folders_of_ended_jobs_alone(
    reaper: Reaper, jobs: JobStore, job_id: str, tmp_path: Path
) -> None:
    ended = jobs.submit(short_request())[0].id
    jobs.cancel(ended)
    unknown = "job-" + "0" * 20
    for name in (job_id, ended, unknown):
        job_folder(tmp_path, name).mkdir(parents=True)
    reaper.tick()
    assert {path.name for path in (tmp_path / "jobs").iterdir()} == {job_id, unknown}


def test_job_that_was_published_by_an_earlier_attempt_is_only_marked_so(
    records: JobRecords, store: PromptStore, jobs: JobStore, client: redis.Redis, job_id: str, tmp_path: Path
) -> None:
    first = lose(client, records, job_id)
    publish(store, job_id)
    records.take_back(job_id, attempt=first, reason="lost")
    job_folder(tmp_path, job_id).mkdir(parents=True)
    settings = Settings.model_validate({"redis_url": "unix:///nothing", "data_dir": tmp_path})
    supervisor = Supervisor(settings, records, store, host="h", name="w", stop=threading.Event())
    assert supervisor.attend(job_id, beat=lambda: None) is False
    job = jobs.get(job_id)
    assert (job.status, job.result and job.result.promoted, job.attempt) == ("succeeded", True, 2)
    assert not job_folder(tmp_path, job_id).exists()
    assert supervisor.attend(job_id, beat=lambda: None) is False


def test_job_whose_trainer_cannot_be_started_waits_for_another_try(
    monkeypatch: pytest.MonkeyPatch,
    records: JobRecords,
    store: PromptStore,
    jobs: JobStore,
    job_id: str,
    tmp_path: Path,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("app.training.supervision.subprocess.Popen", refuse)
    settings = Settings.model_validate({"redis_url": "unix:///nothing", "data_dir": tmp_path})
    supervisor = Supervisor(settings, records, store, host="h", name="w", stop=threading.Event())
    assert supervisor.attend(job_id, beat=lambda: None) is True
    assert jobs.get(job_id).status == "queued"
    for _ in range(GIVE_UP_AFTER):
        supervisor.attend(job_id, beat=lambda: None)
    job = jobs.get(job_id)
    assert (job.status, job.error and job.error.code) == ("failed", "worker_lost")


def test_settings_reach_a_child_through_its_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHORUS_API_KEY", "of-the-parent")
    monkeypatch.chdir(tmp_path)
    settings = Settings.model_validate({"redis_url": "redis://h", "data_dir": "here", "starters": False})
    settings = settings.model_copy(update={"api_key": None})
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CHORUS_API_KEY")
    assert "CHORUS_API_KEY" not in environment(settings)
    assert Settings.model_validate({}) == settings.model_copy(update={"data_dir": tmp_path / "here"})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def reporter(records: JobRecords, job_id: str, clock: Clock, *, total: int, attempt: int = 1) -> Reporter:
    stop = threading.Event()
    return Reporter(records, job_id, attempt, total=total, per_epoch=10, metric="accuracy", stop=stop, clock=clock)


def test_progress_is_reported_at_most_once_a_second_and_at_the_end(
    records: JobRecords, jobs: JobStore, job_id: str
) -> None:
    records.claim(job_id, "w")
    clock = Clock()
    tell = reporter(records, job_id, clock, total=20)
    for step in range(1, 21):
        clock.now += REPORT_S / 4
        tell.stepped(step, float(step), Judgement(0.5, 1.0))
    steps = [event.data["step"] for event in jobs.events(job_id) if event.type == "progress"]
    assert steps == [1, 5, 9, 13, 17, 20]
    last = jobs.get(job_id).progress
    assert last == Progress(step=20, total=20, epoch=2.0, loss=19.0, score=0.5, eta_s=0.0)


def test_long_run_tells_a_bounded_story_and_still_shows_where_it_is(
    records: JobRecords, jobs: JobStore, job_id: str
) -> None:
    records.claim(job_id, "w")
    clock = Clock()
    tell = reporter(records, job_id, clock, total=10 * STORIES)
    for step in range(1, 101):
        clock.now += REPORT_S
        tell.stepped(step, 1.0, None)
    assert len([event for event in jobs.events(job_id) if event.type == "progress"]) == 10
    progress = jobs.get(job_id).progress
    assert progress is not None
    assert (progress.step, progress.eta_s) == (100, 10 * STORIES - 100)


def test_reporter_of_a_lost_claim_asks_the_loop_to_stop(records: JobRecords, job_id: str) -> None:
    records.claim(job_id, "w")
    tell = reporter(records, job_id, Clock(), total=5, attempt=7)
    assert not tell.stop_requested()
    tell.saved(1)
    assert tell.stop_requested()


def test_reports_are_lost_without_harm_while_redis_is_away(job_id: str, tmp_path: Path) -> None:
    with connect(f"unix://{tmp_path}/nothing") as nowhere:
        tell = reporter(JobRecords(nowhere, lease_s=1), job_id, Clock(), total=5)
        tell.stepped(1, 1.0, None)
        tell.warned("odd")
        assert not tell.stop_requested()
