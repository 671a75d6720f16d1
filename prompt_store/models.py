"""The nouns of the store: frozen, validated, JSON in and out. They do no I/O.

`PromptMeta` travels inside the blob (safetensors `__metadata__`), so that a blob explains itself; `Version` is the
store's record of one blob under one task; `Alias` is a movable name. Unknown fields are refused, so that a record
written by a newer format is never half understood.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

TASK_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
ALIAS_NAME = r"^[a-z][a-z0-9._-]{0,62}$"
DIGEST = r"^[0-9a-f]{64}$"
PROD = "prod"
HAND_WRITTEN = "hand_written"
"""The method of a version whose words a person wrote: nothing was learned."""
MIN_MEMBERS, MAX_MEMBERS = 2, 16  # of a split or an ensemble

TaskName = Annotated[str, Field(pattern=TASK_NAME)]
AliasName = Annotated[str, Field(pattern=ALIAS_NAME)]
Digest = Annotated[str, Field(pattern=DIGEST)]
Metric = Literal["accuracy", "macro_f1", "exact_match", "rouge_l", "loss"]
Family = Literal["causal", "seq2seq", "masked"]
VersionState = Literal["candidate", "published", "quarantined", "retired"]
EnsembleMode = Literal["vote", "mean"]
TensorName = Literal["prompt", "prefix", "decoder_prompt", "decoder_prefix", "cross_prefix"]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Decoding(Record):
    """Default decoding of a task; a request may override each. `temperature` 0 is greedy."""

    max_tokens: int = Field(default=32, ge=1, le=4096)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    stop: tuple[str, ...] = Field(default=(), max_length=8)


class TaskSpec(Record):
    """What a user says of a task: its input fields in order, its labels if it is a label task, metric and decoding.

    `abstain_below`: a label whose probability is under it is not given (label tasks only; None always answers).
    """

    description: str = Field(default="", max_length=2000)
    fields: tuple[str, ...] = Field(min_length=1, max_length=32)
    labels: tuple[str, ...] | None = None
    metric: Metric = "accuracy"
    decoding: Decoding = Decoding()
    abstain_below: float | None = Field(default=None, ge=0.0, le=1.0)


class Task(Record):
    """A registered task. `id` is new when a deleted name returns, so old versions never come back with the name."""

    name: TaskName
    id: str
    spec: TaskSpec
    created_at: float
    updated_at: float


class Golden(Record):
    """One input with the answer its trainer got, replayed by every replica before it serves the version.

    Label prompts carry `scores` (label -> log-score); free text carries the greedy `tokens` with `margins`, the gap
    between the best and second log-probability at each step, below which a differing token is not an error.
    """

    input: dict[str, str]
    scores: dict[str, float] | None = None
    tokens: tuple[int, ...] | None = None
    margins: tuple[float, ...] | None = None


class BackboneRef(Record):
    """The frozen model a prompt belongs to; `fingerprint` decides, `name` is for people."""

    name: str
    fingerprint: str
    family: Family = "causal"
    hidden_size: int = Field(ge=1)


class PromptMeta(Record):
    """Everything needed to serve the blob beside its tensors.

    `verbalizer` maps label -> words; `verbalizer_ids` label -> token ids of each word; `terminated` says whether the
    end token counts in each word's score. `bos` is where the begin token stands: PEFT's order is `after_prompt`.
    `tensors` maps each tensor's name to its shape, all float32; None means the usual single one, `prompt` [P, H], or
    none at all when P is 0. Names: `prompt`, `prefix` and, of encoder-decoders, `decoder_prompt`, `decoder_prefix`,
    `cross_prefix`; a prefix holds keys and values per layer, [2, L, G, P, D].
    """

    format: Literal[1] = 1
    task: TaskName
    template: str
    verbalizer: dict[str, tuple[str, ...]] | None = None
    verbalizer_ids: dict[str, tuple[tuple[int, ...], ...]] | None = None
    terminated: bool = False
    bos: Literal["after_prompt", "first", "none"]
    method: dict[str, Any]
    backbone: BackboneRef
    num_virtual_tokens: int = Field(ge=0)
    tensors: dict[TensorName, tuple[Annotated[int, Field(ge=1)], ...]] | None = None
    decoding: Decoding = Decoding()
    golden: tuple[Golden, ...] = ()
    provenance: dict[str, Any] = {}

    @model_serializer(mode="wrap")
    def _without_usual_tensors(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Written without `tensors` where they are the usual one, so that such blobs keep the bytes they had."""
        return {name: value for name, value in write(self).items() if name != "tensors" or value is not None}


class Calibration(Record):
    """How far a version's label probabilities can be believed: expected calibration error (15 bins) and accuracy on the
    evaluation's rows, as they are and after contextual calibration."""

    ece: float
    ece_calibrated: float
    accuracy: float
    accuracy_calibrated: float


class Evaluation(Record):
    """One evaluation of a version, appended to its card: `score` of `metric` over `n` rows with its 95 % interval.

    `calibration` is of label tasks; older evaluations have none.
    """

    metric: Metric
    score: float
    n: int
    interval: tuple[float, float]
    split: str
    baselines: dict[str, float] = {}
    calibration: Calibration | None = None
    at: float
    details: dict[str, Any] = {}


class Version(Record):
    """One immutable version of a task. Only `state` and the card's evaluations move, each by a store call."""

    task: TaskName
    task_id: str
    number: int = Field(ge=1)
    digest: Digest
    size_bytes: int
    state: VersionState
    meta: PromptMeta
    card: tuple[Evaluation, ...] = ()
    publication: str
    created_at: float


class Share(Record):
    """One version of a split and the weight of its draw; weights count in proportion to their sum."""

    version: int = Field(ge=1)
    weight: float = Field(gt=0.0)


class Ensemble(Record):
    """Versions that answer one row together, by vote or by mean probability."""

    members: tuple[int, ...]
    mode: EnsembleMode


class AliasTarget(Record):
    """Where an alias points: exactly one of a version, a weighted split and an ensemble.

    Written without the two that it is not, so that an alias to one version has the form it had before the others came.
    """

    version: int | None = Field(default=None, ge=1)
    split: tuple[Share, ...] | None = None
    ensemble: Ensemble | None = None

    @property
    def versions(self) -> tuple[int, ...]:
        """Every version it mentions, in its own order."""
        return tuple(number for _, number in self.places)

    @property
    def places(self) -> tuple[tuple[str, int], ...]:
        """Every version it mentions, after the place where it does: `version`, `split.0.version`, …"""
        if self.split is not None:
            return tuple((f"split.{place}.version", share.version) for place, share in enumerate(self.split))
        if self.ensemble is not None:
            return tuple((f"ensemble.members.{place}", one) for place, one in enumerate(self.ensemble.members))
        return (("version", self.version),) if self.version else ()

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(kind is not None for kind in (self.version, self.split, self.ensemble)) != 1:
            raise ValueError("an alias points to exactly one of version, split and ensemble")
        if self.version is None:
            numbers = self.versions
            if not MIN_MEMBERS <= len(numbers) <= MAX_MEMBERS:
                raise ValueError(f"{len(numbers)} versions; a split or an ensemble has {MIN_MEMBERS} to {MAX_MEMBERS}")
            if min(numbers) < 1 or len(set(numbers)) != len(numbers):
                raise ValueError("the versions of a split or an ensemble are distinct and count from 1")
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        absent = {name for name in ("version", "split", "ensemble") if getattr(self, name) is None}
        return {name: value for name, value in write(self).items() if name not in absent}


class Alias(AliasTarget):
    """A movable name of a task. `revision` grows by one with each move and is what compare-and-set compares."""

    task: TaskName
    name: AliasName
    revision: int = Field(ge=1)
    updated_at: float


class Event(Record):
    """One change of the registry. `id` is its place in the stream, `epoch` the counter after it.

    The `version` of an alias that moved is None when it points to several.
    """

    id: str
    epoch: int
    kind: Literal["task", "task_deleted", "version", "version_state", "alias", "alias_deleted"]
    task: TaskName
    task_id: str
    version: int | None = None
    alias: str | None = None
    at: float
