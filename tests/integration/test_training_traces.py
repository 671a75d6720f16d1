"""One trace from the submission over HTTP through the real queue into a worker's process and its trainer's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from app.training import JobStore, keys
from app.training.connection import connect
from prompt_store import PromptStore
from tests.fakes import FakeBackbone, FakeEngineService
from tests.live import HANG_S, serving, wait_until
from tests.traces import GIVEN, SPAN, TRACE, Kept, Seen, collecting, named
from tests.training_data import short_request
from tests.whole import clean_environment


@pytest.fixture(scope="module")
def spans(redis_server_url: str, tmp_path_factory: pytest.TempPathFactory) -> list[Seen]:
    """Of one job, from all processes."""
    folder = tmp_path_factory.mktemp("traced")
    tracer = Kept()
    with PromptStore.open(redis_server_url, folder / "blobs") as store, collecting() as collector:
        jobs = JobStore.open(redis_server_url, folder, store, lease_s=15)
        app = create_app(
            Settings(data_dir=folder, redis_url=redis_server_url, starters=False),
            store=store,
            backbone=FakeBackbone(),  # type: ignore[arg-type]
            engine=FakeEngineService(),  # type: ignore[arg-type]
            jobs=jobs,
            tracer=tracer,
        )
        with serving(app) as live, httpx.Client(base_url=live.url, timeout=HANG_S) as client:
            body = short_request().model_dump(mode="json", exclude_none=True)
            answer = client.post("/v1/train", json=body, headers={"traceparent": GIVEN})
            assert answer.status_code == 202, answer.text
            job_id = answer.json()["id"]
        worker = _start_worker(redis_server_url, folder, collector.url)
        try:
            wait_until(lambda: "process chorus-train" in [one.name for one in collector.spans], timeout_s=120)
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(HANG_S)
        assert jobs.get(job_id).status == "succeeded"
        with connect(redis_server_url) as client_:
            assert client_.hget(keys.job(job_id), "trace")
        return [*tracer.spans, *collector.spans]


def _start_worker(redis_url: str, folder: Path, collector: str) -> subprocess.Popen[bytes]:
    environment = clean_environment(
        CHORUS_REDIS_URL=redis_url,
        CHORUS_DATA_DIR=str(folder),
        CHORUS_THREADS="1",
        CHORUS_LOG_LEVEL="warning",
        CHORUS_OTLP_ENDPOINT=collector,
        TRACEPARENT=f"00-{'e' * 32}-{'e' * 16}-01",  # of whatever started the worker: not the job's
    )
    return subprocess.Popen([sys.executable, "-m", "app", "worker"], env=environment, cwd=os.getcwd())


def test_one_trace_leads_from_the_submission_to_the_publication(spans: list[Seen]) -> None:
    assert {one.trace for one in spans} == {TRACE}
    chain = ["POST /v1/train", "send chorus-train", "process chorus-train", "job"]
    parents = [SPAN, *(named(spans, name).id for name in chain)]
    assert [named(spans, name).parent for name in chain] == parents[:-1]
    assert named(spans, "claim").parent == named(spans, "process chorus-train").id
    stages = [named(spans, name) for name in ("load model", "train", "evaluate", "publish")]
    assert {one.parent for one in stages} == {named(spans, "job").id}
    assert sorted(stages, key=lambda one: one.began) == stages
    assert not any(one.failed for one in spans)


def test_spans_say_which_process_and_which_job(spans: list[Seen]) -> None:
    services = {name: named(spans, name).service for name in ("process chorus-train", "job")}
    assert services == {"process chorus-train": "chorus-worker", "job": "chorus-trainer"}
    sent, taken = named(spans, "send chorus-train"), named(spans, "process chorus-train")
    assert (sent.kind, taken.kind) == ("PRODUCER", "CONSUMER")
    assert sent.facts["chorus.job.id"] == taken.facts["chorus.job.id"] == named(spans, "job").facts["chorus.job.id"]
    assert (taken.facts["chorus.job.attempt"], taken.facts["chorus.trainer.exit_code"]) == (1, 0)
    assert sent.facts["messaging.destination.name"] == taken.facts["messaging.destination.name"] == "chorus-train"


def test_no_row_of_the_data_is_told(spans: list[Seen]) -> None:
    told = repr(spans)
    assert "wonderful" not in told
    assert "The door" not in told
