"""For tests of those who use the store: a store without a server, and prompts to put into it. Not for production."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prompt_store.blob_format import expected_tensors
from prompt_store.blobs import BlobStore
from prompt_store.memory_metadata import MemoryMetadata
from prompt_store.models import BackboneRef, Evaluation, PromptMeta, TaskSpec
from prompt_store.store import PromptStore

EXAMPLE_SPEC = TaskSpec(fields=("text",), labels=("negative", "positive"))


def memory_store(folder: Path) -> PromptStore:
    """A store whose registry lives in memory and whose blobs and record files lie in `folder`."""
    return PromptStore(MemoryMetadata(), BlobStore(folder))


def example_meta(task: str = "sentiment", **changes: Any) -> PromptMeta:
    """Metadata of a small prompt: two vectors of width four. `changes` replace fields."""
    fields: dict[str, Any] = {
        "task": task,
        "template": "<prompt:2>{text}",
        "verbalizer": {"positive": (" good",), "negative": (" bad", " terrible")},
        "bos": "after_prompt",
        "method": {"type": "prompt_tuning", "init": "vocab"},
        "backbone": BackboneRef(name="tiny", fingerprint="0" * 16, hidden_size=4),
        "num_virtual_tokens": 2,
    }
    return PromptMeta.model_validate(fields | changes)


def example_tensors(meta: PromptMeta, seed: int = 0) -> Mapping[str, np.ndarray]:
    """Random values of the shapes that `meta` calls for; another seed gives another blob."""
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape, np.float32) for name, shape in expected_tensors(meta).items()}


def with_versions(store: PromptStore, count: int, task: str = "sentiment") -> PromptStore:
    """The store, after versions 1 to `count` of a task were published; `prod` points to the last, at that revision."""
    meta = example_meta(task)
    for job in range(count):
        tensors = example_tensors(meta, job)
        store.publish(task=task, meta=meta, tensors=tensors, publication=f"job-{job}", spec=EXAMPLE_SPEC)
    return store


def example_evaluation(score: float = 0.9, **details: Any) -> Evaluation:
    """One evaluation over a hundred rows."""
    return Evaluation(
        metric="accuracy",
        score=score,
        n=100,
        interval=(score - 0.05, score + 0.05),
        split="dev",
        at=0.0,
        details=details,
    )
