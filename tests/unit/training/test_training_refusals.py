"""A Redis that answers and refuses, its memory full, its disk broken: workers and trainers outlast it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import OutOfMemoryError, ResponseError

from app.settings import Settings
from app.training import session, supervision, worker
from app.training.connection import is_outage
from app.training.jobs import JobStore
from app.training.queue import Dispatcher, open_queue
from app.training.reaper import Reaper
from app.training.records import JobRecords
from app.training.reporter import AWAY_S, Reporter
from app.training.session import Context, Session
from app.training.supervision import Supervisor
from app.training.worker import TrainingWorker
from prompt_store import PromptStore, StorageFull, StoreUnavailable
from tests.training_data import short_request

OOM = OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")
WRONG = ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")


@pytest.fixture
def full(client: redis.Redis) -> Iterator[Callable[[bool], None]]:
    """Fill the server's memory up, or give it room again."""

    def fill(yes: bool) -> None:
        client.config_set("maxmemory", 1 if yes else 0)

    yield fill
    fill(False)


@pytest.fixture
def job_id(jobs: JobStore) -> str:
    return jobs.submit(short_request())[0].id


@pytest.fixture
def supervisor(records: JobRecords, store: PromptStore, tmp_path: Path) -> Supervisor:
    settings = Settings.model_validate(
        {"redis_url": "unix:///nothing", "data_dir": tmp_path, "job_heartbeat_s": 0.02, "job_lease_s": 60}
    )
    return Supervisor(settings, records, store, host="h", name="w", stop=threading.Event())


def failing(real: Callable[..., Any], error: Exception, times: int) -> Callable[..., Any]:
    """The real call, behind so many that fail."""
    left = iter([True] * times)

    def call(*of: Any, **more: Any) -> Any:
        if next(left, False):
            raise error
        return real(*of, **more)

    return call


def refused(call: Callable[[], object]) -> redis.RedisError:
    with pytest.raises(redis.RedisError) as caught:
        call()
    return caught.value


def test_what_a_server_answers_that_takes_no_writes_is_an_outage(
    client: redis.Redis, full: Callable[[bool], None]
) -> None:
    script = client.register_script("return redis.call('SET', KEYS[1], 'x')")

    def in_a_pipeline() -> None:
        with client.pipeline() as pipeline:
            pipeline.set("a", 1)
            pipeline.execute()

    full(True)
    answers = [refused(call) for call in (lambda: client.set("a", 1), lambda: script(keys=["a"]), in_a_pipeline)]
    full(False)
    client.config_set("min-replicas-to-write", 1)
    try:
        answers += [refused(call) for call in (lambda: client.set("a", 1), lambda: script(keys=["a"]), in_a_pipeline)]
    finally:
        client.config_set("min-replicas-to-write", 0)
    answers.append(ResponseError("MISCONF Redis is configured to save RDB snapshots, but it cannot persist on disk."))
    assert [answer for answer in answers if not is_outage(answer)] == []


def test_wrong_call_and_a_full_disk_of_ones_own_are_no_outage(client: redis.Redis) -> None:
    client.set("text", "x")

    def in_a_pipeline() -> None:
        with client.pipeline() as pipeline:
            pipeline.lpush("text", "caused error: BUSY ")
            pipeline.execute()

    wrong: tuple[Callable[[], object], ...] = (
        lambda: client.lpush("text", 1),
        lambda: client.execute_command("NOSUCH"),
        lambda: client.eval("return redis.call('LPUSH', KEYS[1], 1)", 1, "text"),
        lambda: client.eval("no lua", 0),
        in_a_pipeline,
    )
    assert [call for call in wrong if is_outage(refused(call))] == []
    assert (is_outage(StoreUnavailable("away")), is_outage(StorageFull("full"))) == (True, False)


def test_worker_whose_redis_refuses_writes_serves_on_when_there_is_room(
    client: redis.Redis,
    records: JobRecords,
    store: PromptStore,
    supervisor: Supervisor,
    full: Callable[[bool], None],
    job_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop, attended = threading.Event(), threading.Event()
    monkeypatch.setattr(worker, "RETRY_S", 0.01)
    monkeypatch.setattr(supervisor, "attend", lambda *_, **__: attended.set())
    reaper = Reaper(records, Dispatcher(client), store, tmp_path, every_s=60, orphan_grace_s=60)
    serving = TrainingWorker(open_queue(client), "w", supervisor, Dispatcher(client), reaper)
    full(True)
    thread = threading.Thread(target=serving.serve, args=(stop,))
    thread.start()
    try:
        time.sleep(0.2)
        assert thread.is_alive()
        assert not attended.is_set()
        full(False)
        assert attended.wait(30)
        full(True)
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()


def test_worker_with_a_wrong_command_ends(
    client: redis.Redis,
    records: JobRecords,
    store: PromptStore,
    supervisor: Supervisor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reaper = Reaper(records, Dispatcher(client), store, tmp_path, every_s=60, orphan_grace_s=60)
    serving = TrainingWorker(open_queue(client), "w", supervisor, Dispatcher(client), reaper)
    monkeypatch.setattr(serving, "register_birth", failing(serving.register_birth, WRONG, 1))
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        serving.serve(threading.Event())


def test_worker_that_starts_while_redis_refuses_waits_for_it(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "RETRY_S", 0.01)
    monkeypatch.setattr(worker, "open_queue", failing(open_queue, OOM, 2))
    found = worker._connected_worker(client, "w", None, None, None, threading.Event())
    assert found is not None
    assert found.name == "w"


def test_trainer_learns_on_while_its_signs_of_life_are_refused(
    records: JobRecords, supervisor: Supervisor, jobs: JobStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        supervision, "TRAINER", (sys.executable, "-c", "import time; time.sleep(1); raise SystemExit(75)")
    )
    monkeypatch.setattr(records, "beat", failing(records.beat, OOM, 5))
    monkeypatch.setattr(records, "unregister_trainer", failing(records.unregister_trainer, OOM, 1))
    beats: list[int] = []
    assert supervisor.attend(job_id, beat=lambda: beats.append(1)) is True
    assert beats
    told = [event.data.get("reason") for event in jobs.events(job_id) if event.message == "queued"]
    assert told[-1] == "its attempt stopped early, as where the store is out of reach"


def test_reports_are_lost_without_harm_while_redis_refuses_and_told_again_afterwards(
    records: JobRecords, jobs: JobStore, full: Callable[[bool], None], job_id: str
) -> None:
    now = [0.0]
    records.claim(job_id, "w")
    stop = threading.Event()
    tell = Reporter(records, job_id, 1, total=5, per_epoch=1, metric="accuracy", stop=stop, clock=lambda: now[0])
    full(True)
    tell.warned("lost")
    full(False)
    tell.warned("quiet")
    now[0] += AWAY_S
    tell.warned("heard")
    assert not tell.stop_requested()
    warnings = [event.message for event in jobs.events(job_id) if event.type == "warning"]
    assert (warnings[-1], "lost" in warnings, "quiet" in warnings) == ("heard", False, False)


def test_report_with_a_wrong_command_is_not_passed_over(
    records: JobRecords, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "report", failing(records.report, WRONG, 1))
    tell = Reporter(records, job_id, 1, total=5, per_epoch=1, metric="accuracy", stop=threading.Event())
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        tell.warned("odd")


def test_attempt_whose_next_state_is_refused_for_a_moment_goes_on(
    context: Context, jobs: JobStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "RETRY_S", 0.01)
    number = context.records.claim(job_id, "here")
    monkeypatch.setattr(context.records, "move", failing(context.records.move, OOM, 3))
    Session(context, job_id, number).run()
    assert jobs.get(job_id).status == "succeeded"
