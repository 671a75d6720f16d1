"""The nouns of a training job: its record, its events, its states and which state may follow which.

    validating ──> queued ──> running ──> evaluating ──> publishing ──> succeeded
                     ^           │             │              │
                     └───────────┴─────────────┴──────────────┘  the worker went away: another resumes

`failed` and `cancelled` may follow any state that has not ended, except that nothing is cancelled once publishing
has begun. `attempt` counts the claims; it is the fencing token of every write made on behalf of a claim.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from prompt_store.models import Version

Status = Literal["validating", "queued", "running", "evaluating", "publishing", "succeeded", "failed", "cancelled"]

WAITING: tuple[Status, ...] = ("validating", "queued")
ACTIVE: tuple[Status, ...] = ("running", "evaluating", "publishing")
ENDED: tuple[Status, ...] = ("succeeded", "failed", "cancelled")

FOLLOWS: dict[Status, frozenset[Status]] = {
    "validating": frozenset({"queued", "running", "failed", "cancelled"}),
    "queued": frozenset({"running", "failed", "cancelled"}),
    "running": frozenset({"queued", "evaluating", "publishing", "failed", "cancelled"}),
    "evaluating": frozenset({"queued", "publishing", "failed", "cancelled"}),
    "publishing": frozenset({"queued", "succeeded", "failed"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
"""Which states may follow a state. `validating → running`: the queue's entry may be read before the record moves on.
`running → publishing`: the version was published by an earlier attempt whose worker died before it could say so."""

JOB_ID = re.compile(r"job-[0-9a-f]{20}")


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Progress(Record):
    """Where a training run is. `loss` is the mean over the steps since the last report, `score` the best so far. Of a
    sweep: how many members still learn, and the number of the one that leads."""

    step: int
    total: int
    epoch: float
    loss: float | None = None
    score: float | None = None
    eta_s: float | None = None
    learning: int | None = None
    leader: int | None = None


class JobError(Record):
    """Why a job failed: a stable code, a message for people, the field or row it is about."""

    code: str
    message: str
    param: str | None = None
    row: int | None = None


class Published(Record):
    version: int
    digest: str


class JobResult(Record):
    """What a job published: one version, or those of an ensemble, the best first. `promoted`: whether the alias was
    moved to it. `sweep`: every member of a sweep, as on the best version's card."""

    version: int
    digest: str
    promoted: bool
    ensemble: tuple[Published, ...] | None = None
    sweep: tuple[dict[str, Any], ...] | None = None

    @classmethod
    def of(cls, versions: Sequence[Version]) -> Self:
        """Of all versions of one publication, in their order."""
        best = versions[0]
        several = tuple(Published(version=one.number, digest=one.digest) for one in versions)
        table = best.card[0].details.get("sweep") if best.card else None
        return cls(
            version=best.number,
            digest=best.digest,
            promoted=best.state == "published",
            ensemble=several if len(several) > 1 else None,
            sweep=None if table is None else tuple(table),
        )


class Job(Record):
    """A training job as users see it. Times are Unix seconds."""

    id: str
    status: Status
    task: str
    created_at: float
    updated_at: float
    started_at: float | None = None
    finished_at: float | None = None
    attempt: int = 0
    cancel_requested: bool = False
    queue_position: int | None = None
    progress: Progress | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    error: JobError | None = None
    result: JobResult | None = None
    data: dict[str, Any] = Field(default_factory=dict)
    template: str
    method: dict[str, Any]
    hyperparameters: dict[str, Any]
    publish: dict[str, Any]
    metadata: dict[str, str] = Field(default_factory=dict)
    members: list[dict[str, Any]] = Field(default_factory=list, description="Of a sweep: what each member is, from 1.")

    @property
    def ended(self) -> bool:
        return self.status in ENDED


EventType = Literal["status", "progress", "metrics", "warning", "message"]


class JobEvent(Record):
    """One line of a job's story. `id` is its place in the stream, to read on from."""

    id: str
    at: float
    type: EventType
    message: str
    data: dict[str, Any] = Field(default_factory=dict)
