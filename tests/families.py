"""A small backbone of any family as users have it, a folder of files, and one training job on it carried out here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.backbone import Backbone, BackboneConfig, LoadedPrompt, load_backbone, load_prompt
from app.training.connection import connect
from app.training.datasets import DatasetStore
from app.training.job import Job
from app.training.jobs import JobStore
from app.training.records import JobRecords
from app.training.requests import TrainRequest
from app.training.session import Context, Session
from prompt_store import PromptStore
from tests.architectures import build_model, tokenizer_for
from tests.training_data import LEASE_S


def save_backbone(name: str, folder: Path) -> Path:
    build_model(name).save_pretrained(folder)
    tokenizer_for(name).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Workshop:
    """Everything a job needs, on one backbone."""

    backbone: Backbone
    store: PromptStore
    jobs: JobStore
    context: Context

    def train(self, **request: Any) -> Job:
        numbers = {"batch_size": 8, "n_epochs": 12, "num_virtual_tokens": 6, "seed": 1}
        body = {"hyperparameters": numbers} | request
        job, _ = self.jobs.submit(TrainRequest.model_validate(body))
        Session(self.context, job.id, self.context.records.claim(job.id, "here")).run()
        return self.jobs.get(job.id)

    def dev_losses(self, job: Job) -> list[float]:
        """Of every evaluation while it trained, in order."""
        told = [event.data for event in self.jobs.events(job.id)]
        return [data["dev_loss"] for data in told if "best" in data]

    def prompt(self, task: str) -> LoadedPrompt:
        version = self.store.get_version(task, 1)
        return load_prompt(version, self.store.load(version), self.backbone)


@contextmanager
def workshop(name: str, redis_url: str, folder: Path) -> Iterator[Workshop]:
    backbone = load_backbone(BackboneConfig(source=str(save_backbone(name, folder / name))))
    with connect(redis_url) as client, PromptStore.open(redis_url, folder / "blobs") as store:
        records, datasets = JobRecords(client, lease_s=LEASE_S), DatasetStore(client, folder / "datasets")
        context = Context(
            records=records,
            store=store,
            datasets=datasets,
            backbone=backbone,
            data_dir=folder,
            max_context=128,
            checkpoint_s=60,
            stop=threading.Event(),
        )
        yield Workshop(backbone, store, JobStore(client, store, datasets, lease_s=LEASE_S, backbone=backbone), context)
