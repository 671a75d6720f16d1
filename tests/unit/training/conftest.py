"""What the tests of training share: a store, jobs on a real Redis, rows, and the bundled backbone, loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import torch

from app.backbone import Backbone, BackboneConfig, load_backbone
from app.training.connection import connect
from app.training.datasets import DatasetStore
from app.training.jobs import JobStore
from app.training.records import JobRecords
from prompt_store import PromptStore
from tests.training_data import LEASE_S


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


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    torch.set_num_threads(1)
    return load_backbone(BackboneConfig())
