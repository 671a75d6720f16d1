"""What a training request may say: closed, bounded models. Checks that need data or tasks are in `plan.py`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictInt, StringConstraints, model_validator

from app.training.closed import Closed
from app.training.configuration import AnyMethod, Hyperparameters, TemplateText
from app.training.methods import DEFAULT, METHODS
from app.training.sweep import MAX_TOP, Sweep
from prompt_store.models import AliasName, Metric, TaskName

__all__ = ["AnyMethod", "Hyperparameters", "Publish", "TrainRequest", "TrainingData", "ValidationData"]

DatasetName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]

MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class TrainingData(Closed):
    """Rows in the request, or the name of an uploaded data set: one of the two."""

    inline: list[dict[str, Any]] | None = Field(default=None, description="Rows.")
    dataset: DatasetName | None = Field(default=None, description="Name of an uploaded data set.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.inline is None) == (self.dataset is None):
            raise ValueError("give either `inline` or `dataset`")
        return self


class ValidationData(Closed):
    """Rows, an uploaded data set, or the share of the training rows to hold back."""

    inline: list[dict[str, Any]] | None = Field(default=None, description="Rows.")
    dataset: DatasetName | None = Field(default=None, description="Name of an uploaded data set.")
    split: float | None = Field(default=None, gt=0.0, le=0.5, description="Share of the training rows.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(part is not None for part in (self.inline, self.dataset, self.split)) != 1:
            raise ValueError("give one of `inline`, `dataset` and `split`")
        return self


class Publish(Closed):
    """`better_than_current` compares with the version `alias` points to, on the same rows, in the same job: by `metric`
    (the task's own unless given), a gain of more than `min_gain`, in at least the share `confidence` of paired
    bootstrap resamples where that is given. With `top_k` the ensemble is compared, and `alias` points to it."""

    when: Literal["always", "better_than_current", "never"] = "always"
    alias: AliasName = "prod"
    metric: Metric | None = None
    min_gain: float = Field(default=0.0, ge=0.0, description="In the metric's unit: 0.01 is a point of accuracy.")
    confidence: float | None = Field(default=None, ge=0.5, lt=1.0)
    top_k: StrictInt | None = Field(
        default=None, ge=2, le=MAX_TOP, description="Of a sweep: so many of the best, as an ensemble by vote."
    )

    @model_validator(mode="after")
    def _gate_only_where_compared(self) -> Self:
        if self.when != "better_than_current" and (self.metric or self.min_gain or self.confidence):
            raise ValueError('`metric`, `min_gain` and `confidence` belong to `when`: "better_than_current"')
        return self


class TrainRequest(Closed):
    """Body of `POST /v1/train`."""

    task: TaskName
    training_data: TrainingData
    validation_data: ValidationData | None = None
    template: TemplateText | None = None
    verbalizer: dict[str, Annotated[list[str], Field(min_length=1, max_length=32)]] | Literal["search"] | None = Field(
        default=None,
        description='Words of each label, or "search": the backbone finds them on the training rows.',
    )
    method: AnyMethod = METHODS[DEFAULT].config.model_validate({})
    hyperparameters: Hyperparameters = Hyperparameters()
    sweep: Sweep | None = Field(
        default=None, description="Many configurations, learned together; the best is published."
    )
    publish: Publish = Publish()
    metadata: dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ] = Field(default_factory=dict, max_length=16)
