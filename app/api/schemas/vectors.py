"""The wire form of an explained prompt, and of what its virtual tokens are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import ConfigDict, Field

from app.api.schemas.base import Ask, Reply
from app.training.requests import TrainingData
from prompt_store.models import Metric

if TYPE_CHECKING:
    from app.api.leave_one_out import LeaveOneOut
    from app.backbone import LoadedPrompt
    from app.backbone.explain import VectorView


class NearWordView(Reply):
    token: int
    text: str
    cosine: float
    distance: float = Field(description="Euclidean, in units of the median word embedding's norm.")


class OneVectorView(Reply):
    slot: int = Field(description="Which of the template's slots it stands in, from 0.")
    index: int = Field(description="Its place in the prompt, from 0.")
    norm: float = Field(description="In units of the median word embedding's norm.")
    words: list[NearWordView]


class PrefixNormView(Reply):
    index: int
    keys: float
    values: float


class VectorsView(Reply):
    """`vectors` of prompts that stand among words, `prefix` of keys and values; the other is empty."""

    task: str
    version: int
    digest: str
    template: str
    vectors: list[OneVectorView]
    prefix: list[PrefixNormView]

    @classmethod
    def of(cls, prompt: LoadedPrompt, vectors: Sequence[VectorView], norms: Sequence[Sequence[float]]) -> VectorsView:
        slots = [slot for slot, size in enumerate(prompt.template.slots) for _ in range(size)]
        return cls(
            task=prompt.task,
            version=prompt.version,
            digest=prompt.digest,
            template=prompt.template.source,
            vectors=[
                OneVectorView(
                    slot=slots[one.index],
                    index=one.index,
                    norm=one.norm,
                    words=[NearWordView(**vars(word)) for word in one.words],
                )
                for one in vectors
            ],
            prefix=[PrefixNormView(index=i, keys=keys, values=values) for i, (keys, values) in enumerate(norms)],
        )


class LeaveOneOutBody(Ask):
    """Labelled rows, as for training: a file's in `inline`, or an uploaded data set's."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"data": {"dataset": "tickets-test"}}, {"data": {"dataset": "tickets-test"}, "sample": 50}]
        }
    )

    data: TrainingData
    sample: int | None = Field(
        default=None,
        ge=4,
        le=2000,
        description="Most rows to look at, labels in proportion; 200 for label tasks, 32 for free text unless given.",
    )
    timeout_s: float | None = Field(default=None, gt=0, description="Seconds for all of it; the longest unless given.")


class LeftOutView(Reply):
    """The version without one virtual token."""

    part: str = Field(description="`prompt`: vectors; `prefix`: keys and values; others on a decoder's side.")
    slot: int | None = Field(
        description="Which of the template's slots it stands in, from 0; null on a decoder's side."
    )
    index: int = Field(description="Its place in its part, from 0.")
    score: float = Field(description="Without it.")
    loss: float = Field(description="Without it.")


class LeaveOneOutView(Reply):
    """`score` and `loss` are the whole version's. A virtual token without which the loss is higher is worth something;
    one without which it is lower does harm."""

    task: str
    version: int
    digest: str
    metric: Metric
    rows: int
    score: float
    loss: float = Field(description="Mean over the rows' labels, or over the tokens of their answers.")
    vectors: list[LeftOutView]

    @classmethod
    def of(cls, prompt: LoadedPrompt, found: LeaveOneOut) -> LeaveOneOutView:
        return cls(
            task=prompt.task,
            version=prompt.version,
            digest=prompt.digest,
            metric=found.metric,
            rows=found.rows,
            score=found.whole.score,
            loss=found.whole.loss,
            vectors=[
                LeftOutView(
                    part=one.place.part,
                    slot=one.slot,
                    index=one.place.index,
                    score=one.worth.score,
                    loss=one.worth.loss,
                )
                for one in found.without
            ],
        )
