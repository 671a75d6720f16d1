"""Bodies and answers of tasks, their versions and their aliases."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from app.api.schemas.aliases import EnsembleTarget, SplitTarget, target_view
from app.api.schemas.base import Ask, Reply
from prompt_store.models import Alias, Decoding, Evaluation, Metric, Task, TaskSpec, Version, VersionState

FieldName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]
Label = Annotated[str, Field(min_length=1, max_length=200)]
Stop = Annotated[str, Field(min_length=1, max_length=64)]


class DecodingBody(Ask):
    """Default decoding of a task; a request may override each part."""

    max_tokens: int = Field(default=32, ge=1, le=4096)
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, le=1_000_000)
    stop: list[Stop] = Field(default_factory=list, max_length=8)


class TaskBody(Ask):
    """The definition of a task. Labels may not change while the task has versions."""

    description: str = Field("", max_length=2000)
    fields: list[FieldName] = Field(min_length=1, max_length=32, examples=[["text"]])
    labels: list[Label] | None = Field(None, min_length=2, max_length=1000, examples=[["negative", "positive"]])
    metric: Metric = "accuracy"
    decoding: DecodingBody = DecodingBody()
    abstain_below: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Label tasks: with a best probability under this, the answer is `label: null, abstained: true`.",
        examples=[0.6],
    )

    @field_validator("abstain_below")
    @classmethod
    def _only_with_labels(cls, share: float | None, info: ValidationInfo) -> float | None:
        if share is not None and info.data.get("labels") is None:
            raise ValueError("only a task with labels can abstain")
        return share

    def spec(self) -> TaskSpec:
        return TaskSpec.model_validate(self.model_dump())


class TaskView(Reply):
    """A task. `aliases` says where each of its movable names points: to a version's number, a split or an ensemble;
    `prod` answers for the bare name."""

    name: str
    id: str
    description: str
    fields: list[str]
    labels: list[str] | None
    metric: str
    decoding: Decoding
    abstain_below: float | None
    aliases: dict[str, int | SplitTarget | EnsembleTarget]
    created_at: float
    updated_at: float

    @classmethod
    def of(cls, task: Task, aliases: list[Alias]) -> TaskView:
        spec = task.spec
        return cls(
            name=task.name,
            id=task.id,
            description=spec.description,
            fields=list(spec.fields),
            labels=None if spec.labels is None else list(spec.labels),
            metric=spec.metric,
            decoding=spec.decoding,
            abstain_below=spec.abstain_below,
            aliases={alias.name: target_view(alias) for alias in aliases},
            created_at=task.created_at,
            updated_at=task.updated_at,
        )


class VersionView(Reply):
    """One immutable version with its card. Golden inputs stay inside: they are rows of somebody's data."""

    task: str
    version: int
    digest: str
    size_bytes: int
    state: VersionState
    aliases: list[str]
    template: str
    verbalizer: dict[str, list[str]] | None
    num_virtual_tokens: int
    method: dict[str, Any]
    backbone: dict[str, Any]
    decoding: Decoding
    provenance: dict[str, Any]
    card: list[Evaluation]
    created_at: float

    @classmethod
    def of(cls, version: Version, aliases: list[Alias]) -> VersionView:
        meta = version.meta
        words = None if meta.verbalizer is None else {label: list(of) for label, of in meta.verbalizer.items()}
        return cls(
            task=version.task,
            version=version.number,
            digest=version.digest,
            size_bytes=version.size_bytes,
            state=version.state,
            aliases=[alias.name for alias in aliases if version.number in alias.versions],
            template=meta.template,
            verbalizer=words,
            num_virtual_tokens=meta.num_virtual_tokens,
            method=meta.method,
            backbone=meta.backbone.model_dump(),
            decoding=meta.decoding,
            provenance=meta.provenance,
            card=list(version.card),
            created_at=version.created_at,
        )


class HealthView(Reply):
    """What runs here. `degraded`: answers come from the last known registry, because it cannot be reached."""

    status: Literal["ok", "degraded", "draining"]
    version: str
    backbone: dict[str, Any]
    engine: dict[str, float]
    registry: dict[str, Any]
    uptime_s: float
