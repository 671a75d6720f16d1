"""What the tests of training share: a store, jobs on a real Redis, rows, and the bundled backbone, loaded once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from app.backbone import Backbone, BackboneConfig, load_backbone
from app.training import session
from app.training.connection import connect
from app.training.datasets import DatasetStore
from app.training.job import Job
from app.training.jobs import JobStore
from app.training.planning import Planner
from app.training.records import JobRecords
from app.training.session import Context, Session
from prompt_store import PromptStore, StoreUnavailable
from tests.training_data import LEASE_S, short_request


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def records(client: redis.Redis) -> JobRecords:
    return JobRecords(client, lease_s=LEASE_S)


@pytest.fixture
def store(redis_url: str, tmp_path: Path) -> Iterator[PromptStore]:
    with PromptStore.open(redis_url, tmp_path / "blobs") as store:
        yield store


@pytest.fixture
def datasets(client: redis.Redis, tmp_path: Path) -> DatasetStore:
    return DatasetStore(client, tmp_path / "datasets")


@pytest.fixture
def jobs(client: redis.Redis, store: PromptStore, datasets: DatasetStore) -> JobStore:
    return JobStore(client, store, datasets, lease_s=LEASE_S)


@pytest.fixture
def planner(store: PromptStore, datasets: DatasetStore) -> Planner:
    return Planner(store, datasets)


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    torch.set_num_threads(1)
    return load_backbone(BackboneConfig())


@pytest.fixture
def context(
    records: JobRecords, store: PromptStore, datasets: DatasetStore, backbone: Backbone, tmp_path: Path
) -> Context:
    return Context(
        records=records,
        store=store,
        datasets=datasets,
        backbone=backbone,
        data_dir=tmp_path,
        max_context=128,
        checkpoint_s=60,
        stop=threading.Event(),
    )


@pytest.fixture
def attempt(context: Context, jobs: JobStore) -> Callable[..., Job]:
    """Submit a request and carry it out here; the job as it then is."""

    def carry_out(**request: Any) -> Job:
        job, _ = jobs.submit(short_request(**request))
        Session(context, job.id, context.records.claim(job.id, "here")).run()
        return jobs.get(job.id)

    return carry_out


@pytest.fixture
def answers_lost(store: PromptStore, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Let the connection break behind the commit of a store's method, so many times."""

    def lose(method: str, times: int) -> None:
        real, failures = getattr(store, method), iter([True] * times + [False])

        def publish(**what: Any) -> Any:
            made = real(**what)
            if next(failures):
                raise StoreUnavailable("the connection broke after the commit")
            return made

        monkeypatch.setattr(store, method, publish)
        monkeypatch.setattr(session, "RETRY_S", 0.01)

    return lose
