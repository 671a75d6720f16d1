"""A job's record: which state follows which, who may move it, and that nothing is lost."""

from __future__ import annotations

import itertools
import json
import time

import pytest
import redis

from app.errors import JobEnded, JobNotFound
from app.training import keys
from app.training.job import ACTIVE, ENDED, FOLLOWS, WAITING, JobError, JobResult, Progress, Status
from app.training.jobs import JobStore
from app.training.records import GIVE_UP_AFTER, JobRecords, event_json
from tests.training_data import LEASE_S, mood_request

STATES: tuple[Status, ...] = (*WAITING, *ACTIVE, *ENDED)


@pytest.fixture
def job_id(jobs: JobStore) -> str:
    """A job that waits in the queue."""
    job, _ = jobs.submit(mood_request())
    return job.id


def put_in(client: redis.Redis, job_id: str, status: Status) -> None:
    client.hset(keys.job(job_id), "status", status)


def fall_silent(client: redis.Redis, job_id: str) -> None:
    """As if the holder had been dead for longer than a lease."""
    client.hincrby(keys.job(job_id), "beat", -int(LEASE_S * 2000))


@pytest.mark.parametrize(("origin", "to"), list(itertools.product(STATES, STATES)))
def test_move_succeeds_only_along_a_legal_transition(
    records: JobRecords, client: redis.Redis, job_id: str, origin: Status, to: Status
) -> None:
    put_in(client, job_id, origin)
    reply = records.move(job_id, to, attempt=None)
    legal = to in FOLLOWS[origin]
    assert reply == ("moved" if legal else origin)
    assert records.get(job_id).status == (to if legal else origin)


def test_move_by_an_older_attempt_is_fenced(records: JobRecords, client: redis.Redis, job_id: str) -> None:
    first = records.claim(job_id, "w1")
    fall_silent(client, job_id)
    assert records.take_back(job_id, attempt=None, reason="lost") == "queued"
    second = records.claim(job_id, "w2")
    assert (first, second) == (1, 2)
    assert records.move(job_id, "evaluating", attempt=first) == "fenced"
    assert records.report(job_id, first, progress=Progress(step=1, total=2, epoch=0.5)) == "lost"
    assert records.beat(job_id, first) == "lost"
    assert records.beat(job_id, second) == "held"
    assert records.get(job_id).progress is None


def test_move_repeated_by_its_own_attempt_says_moved_again(records: JobRecords, job_id: str) -> None:
    attempt = records.claim(job_id, "w")
    records.move(job_id, "publishing", attempt=attempt)
    result = JobResult(version=1, digest="d", promoted=True)
    assert [records.move(job_id, "succeeded", attempt=attempt, result=result) for _ in range(2)] == ["moved", "moved"]
    assert records.move(job_id, "succeeded", attempt=None) == "succeeded"


def test_claim_takes_a_waiting_job_once(records: JobRecords, job_id: str) -> None:
    assert [records.claim(job_id, "w") for _ in range(3)] == [1, 0, 0]
    assert records.claim("job-" + "0" * 20, "w") == 0
    job = records.get(job_id)
    assert (job.status, job.attempt) == ("running", 1)
    assert job.started_at is not None


def test_ended_job_has_its_times_error_and_no_place_among_the_live(records: JobRecords, job_id: str) -> None:
    attempt = records.claim(job_id, "w")
    assert records.live() == [job_id]
    records.move(job_id, "failed", attempt=attempt, error=JobError(code="diverged", message="no"))
    job = records.get(job_id)
    assert (job.status, job.ended, job.error) == ("failed", True, JobError(code="diverged", message="no"))
    assert job.finished_at is not None
    assert job.finished_at >= job.created_at
    assert records.live() == []


def test_cancel_of_a_waiting_job_ends_it_at_once(records: JobRecords, job_id: str) -> None:
    assert records.cancel(job_id).status == "cancelled"
    assert records.claim(job_id, "w") == 0
    with pytest.raises(JobEnded, match="already cancelled"):
        records.cancel(job_id)


def test_cancel_of_a_running_job_is_passed_to_its_holder(records: JobRecords, job_id: str) -> None:
    attempt = records.claim(job_id, "w")
    job = records.cancel(job_id)
    assert (job.status, job.cancel_requested) == ("running", True)
    assert records.beat(job_id, attempt) == "cancel"
    assert records.report(job_id, attempt, checkpoint=3) == "cancel"
    assert records.move(job_id, "publishing", attempt=attempt, unless_cancelled=True) == "cancel"
    assert records.move(job_id, "cancelled", attempt=attempt) == "moved"


def test_cancel_of_a_job_whose_worker_is_silent_ends_it_at_once(
    records: JobRecords, client: redis.Redis, job_id: str
) -> None:
    attempt = records.claim(job_id, "w")
    fall_silent(client, job_id)
    assert records.cancel(job_id).status == "cancelled"
    assert records.move(job_id, "evaluating", attempt=attempt) == "cancelled"


@pytest.mark.parametrize("taken_back", [False, True])
def test_cancel_once_publishing_has_begun_is_refused(
    records: JobRecords, client: redis.Redis, job_id: str, taken_back: bool
) -> None:
    attempt = records.claim(job_id, "w")
    records.move(job_id, "publishing", attempt=attempt)
    if taken_back:
        fall_silent(client, job_id)
        assert records.take_back(job_id, attempt=None, reason="lost") == "queued"
    with pytest.raises(JobEnded, match="publishing"):
        records.cancel(job_id)
    assert records.get(job_id).cancel_requested is False


def test_cancel_of_an_ended_job_is_refused(records: JobRecords, job_id: str) -> None:
    attempt = records.claim(job_id, "w")
    records.move(job_id, "failed", attempt=attempt, error=JobError(code="x", message="y"))
    with pytest.raises(JobEnded, match="already failed"):
        records.cancel(job_id)


@pytest.mark.parametrize(
    "unknown", ["job-" + "0" * 20, "nothing", "job-../../etc", "job-" + "0" * 19 + "\n", "", "\ud800"]
)
def test_unknown_job_is_not_found(records: JobRecords, unknown: str) -> None:
    for ask in (records.get, records.cancel, records.events, records.plan):
        with pytest.raises(JobNotFound):
            ask(unknown)


def test_take_back_leaves_a_job_whose_worker_lives(records: JobRecords, job_id: str) -> None:
    assert records.take_back(job_id, attempt=None, reason="lost") == "held"
    records.claim(job_id, "w")
    assert records.take_back(job_id, attempt=None, reason="lost") == "held"


def test_take_back_of_a_job_to_be_cancelled_cancels_it(records: JobRecords, client: redis.Redis, job_id: str) -> None:
    records.claim(job_id, "w")
    records.cancel(job_id)
    fall_silent(client, job_id)
    assert records.take_back(job_id, attempt=None, reason="lost") == "cancelled"
    assert records.get(job_id).status == "cancelled"


def lose(records: JobRecords, job_id: str, *, checkpoint: int | None) -> str:
    attempt = records.claim(job_id, "w")
    if checkpoint is not None:
        records.report(job_id, attempt, checkpoint=checkpoint)
    return records.take_back(job_id, attempt=attempt, reason="lost")


def test_losses_without_a_newer_checkpoint_exhaust_a_job(records: JobRecords, job_id: str) -> None:
    replies = [lose(records, job_id, checkpoint=None) for _ in range(GIVE_UP_AFTER)]
    assert replies == ["queued"] * (GIVE_UP_AFTER - 1) + ["exhausted"]


def test_losses_do_not_count_while_checkpoints_advance(records: JobRecords, job_id: str) -> None:
    replies = [lose(records, job_id, checkpoint=step) for step in range(3 * GIVE_UP_AFTER)]
    assert set(replies) == {"queued"}
    assert records.get(job_id).attempt == 3 * GIVE_UP_AFTER


def test_waiting_job_is_overdue_after_a_lease_for_one_caller(records: JobRecords, job_id: str) -> None:
    assert not records.overdue(job_id)
    time.sleep(LEASE_S * 1.2)
    assert [records.overdue(job_id) for _ in range(3)] == [True, False, False]


def test_events_tell_the_story_in_order_and_read_on(records: JobRecords, job_id: str) -> None:
    attempt = records.claim(job_id, "w")
    records.report(job_id, attempt, event=event_json("metrics", "step 1", loss=0.5))
    story = records.events(job_id)
    assert [event.message for event in story if event.type == "status"] == ["validating", "queued", "running"]
    assert (story[-1].type, story[-1].data) == ("metrics", {"loss": 0.5})
    assert records.events(job_id, after=story[-2].id) == (story[-1],)
    assert records.events(job_id, after=story[-1].id) == ()
    assert records.events(job_id, limit=2) == tuple(story[:2])


def test_events_wait_for_the_next_one(records: JobRecords, job_id: str) -> None:
    last = records.events(job_id)[-1].id
    began = time.monotonic()
    assert records.events(job_id, after=last, block_ms=100) == ()
    assert time.monotonic() - began >= 0.09


def test_report_shows_progress_and_metrics(records: JobRecords, job_id: str) -> None:
    attempt = records.claim(job_id, "w")
    progress = Progress(step=3, total=10, epoch=0.3, loss=1.5, score=0.5, eta_s=2.0)
    assert records.report(job_id, attempt, progress=progress, metrics={"accuracy": 0.5}) == "held"
    job = records.get(job_id)
    assert (job.progress, job.metrics) == (progress, {"accuracy": 0.5})


def test_trainers_are_counted_while_their_registration_lasts(records: JobRecords) -> None:
    records.register_trainer("host", "a", ttl_s=30)
    records.register_trainer("host", "b", ttl_s=0.05)
    records.register_trainer("elsewhere", "c", ttl_s=30)
    time.sleep(0.1)
    assert records.active_trainers("host") == 1
    records.unregister_trainer("host", "a")
    assert records.active_trainers("host") == 0


def test_hash_of_a_job_holds_json_and_never_a_pickle(client: redis.Redis, job_id: str) -> None:
    found = client.hgetall(keys.job(job_id))
    assert json.loads(found[b"plan"])["task"] == "mood"
    entry = client.hgetall(f"rq:job:{job_id}")
    assert b"\x80" not in entry[b"data"][:1]
