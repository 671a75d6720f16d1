"""An application around a small model that really runs: its own engine, prompts of random vectors, no training."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from app.backbone import Backbone
from app.main import create_app
from app.settings import Settings
from app.telemetry.tracing import Tracer
from app.training import JobStore
from prompt_store import BlobStore, MemoryMetadata, PromptMeta, PromptStore, TaskSpec
from prompt_store.models import Metric
from tests.prompts import make_prompt

_numbers = itertools.count()


@dataclass
class RealWorld:
    app: FastAPI
    store: PromptStore
    backbone: Backbone

    def publish(
        self,
        task: str,
        template: str,
        *,
        words: Mapping[str, Sequence[str]] | None = None,
        seed: int = 0,
        metric: Metric = "accuracy",
    ) -> int:
        """A prompt of random vectors as the task's next version, which `prod` then points to; returns its number."""
        prompt = make_prompt(self.backbone, template, words=words, seed=seed)
        verbalizer = prompt.verbalizer
        meta = PromptMeta(
            task=task,
            template=template,
            verbalizer=None if verbalizer is None else dict(zip(verbalizer.labels, verbalizer.words, strict=True)),
            verbalizer_ids=None if verbalizer is None else dict(zip(verbalizer.labels, verbalizer.ids, strict=True)),
            terminated=verbalizer is not None and verbalizer.terminated,
            bos=prompt.bos,
            method={"type": "prompt_tuning" if prompt.vectors is not None else "hard"},
            backbone=self.backbone.ref,
            num_virtual_tokens=prompt.num_virtual_tokens,
            decoding=prompt.decoding,
        )
        done = self.store.publish(
            task=task,
            meta=meta,
            tensors={} if prompt.vectors is None else {"prompt": prompt.vectors.numpy()},
            publication=f"real-{next(_numbers)}",
            alias="prod",
            spec=TaskSpec(fields=prompt.template.fields, labels=None if words is None else tuple(words), metric=metric),
        )
        return done.version.number


def make_real_world(
    folder: Path, redis_url: str, backbone: Backbone, tracer: Tracer | None = None, **settings: Any
) -> RealWorld:
    chosen = Settings(data_dir=folder, redis_url=redis_url, threads=1, **settings)
    store = PromptStore(MemoryMetadata(), BlobStore(folder / "blobs"))
    jobs = JobStore.open(redis_url, folder, store, lease_s=15)
    return RealWorld(create_app(chosen, store=store, backbone=backbone, jobs=jobs, tracer=tracer), store, backbone)
