"""A training request made definite: every default filled in that needs no model, every byte of data pinned.

The plan is what a job's record holds and what the trainer carries out; the same plan gives the same prompt.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from app.training.datasets import PinnedData
from app.training.requests import AnyMethod, Hyperparameters, Publish
from prompt_store.models import TaskSpec


class Member(BaseModel):
    """One configuration of a sweep. `settings`: what tells it from the others; `verbalizer` None: the plan's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: dict[str, Any]
    template: str
    verbalizer: dict[str, tuple[str, ...]] | None = None
    method: AnyMethod
    hyperparameters: Hyperparameters


class Plan(BaseModel):
    """`spec` is the task's, or what the task will be created with. `search_words`: the trainer finds the labels' words,
    and `verbalizer` is None. `split`: share of the training rows held back, where no validation data is given; None
    leaves the share to the number of rows. `members`: what a sweep's runs differ in; the plan's own template and method
    are the first one's, and `halving` says whether the worse ones stop early."""

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
    members: tuple[Member, ...] = ()
    halving: bool = False

    def of(self, member: Member) -> Plan:
        """The plan of a job that would train this member alone."""
        words = self.verbalizer if member.verbalizer is None else member.verbalizer
        own = {"template": member.template, "method": member.method, "hyperparameters": member.hyperparameters}
        return self.model_copy(update=own | {"verbalizer": words, "members": (), "halving": False})
