"""A training request made definite: every default filled in that needs no model, every byte of data pinned.

The plan is what a job's record holds and what the trainer carries out; the same plan gives the same prompt.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from app.training.datasets import PinnedData
from app.training.requests import AnyMethod, Hyperparameters, Publish
from prompt_store.models import TaskSpec


class Plan(BaseModel):
    """`spec` is the task's, or what the task will be created with. `search_words`: the trainer finds the labels' words,
    and `verbalizer` is None. `split`: share of the training rows held back, where no validation data is given; None
    leaves the share to the number of rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    spec: TaskSpec
    template: str
    verbalizer: dict[str, tuple[str, ...]] | None = None
    search_words: bool = False
    training: PinnedData
    validation: PinnedData | None = None
    split: float | None = None
    method: AnyMethod
    hyperparameters: Hyperparameters
    publish: Publish
    metadata: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
