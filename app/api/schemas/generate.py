"""Bodies of the generate routes, and the answer with one output for each row."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from app.api.errors import ErrorDetail
from app.api.schemas.base import Ask, Reference, Reply

Text = str
Fields = Annotated[dict[str, str], Field(min_length=1, max_length=32)]
Input = Annotated[
    Text | Fields,
    Field(
        description="A text, for tasks of one field; or an object with a text for each field.",
        examples=["a gorgeous, witty, seductive movie", {"premise": "A man sleeps.", "hypothesis": "A man is awake."}],
    ),
]
StopString = Annotated[str, Field(min_length=1, max_length=64)]


class Options(Ask):
    """How to answer. What is not given comes from the task's version."""

    max_tokens: int | None = Field(default=None, ge=1, le=4096, description="Most tokens to generate.")
    temperature: float | None = Field(default=None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1_000_000, description="0 keeps all tokens.")
    stop: StopString | Annotated[list[StopString], Field(max_length=8)] | None = Field(
        default=None, description="Strings at which the text ends; they are not part of it."
    )
    seed: int | None = Field(default=None, ge=0, description="Same seed, same input, same version: same sample.")
    scores: bool = Field(default=False, description="Return the probability of every label.")
    calibrate: bool = Field(
        default=False,
        description="Label tasks: divide the probabilities by those of inputs without content, then answer.",
    )
    members: bool = Field(default=False, description="Ensembles: return each member's own answer.")
    timeout_s: float | None = Field(
        default=None, gt=0, description="Deadline of each row, in seconds from the request."
    )

    @property
    def stops(self) -> tuple[str, ...] | None:
        if self.stop is None:
            return None
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class GenerateBody(Options):
    """One `input`, or several `inputs`, for one task."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": "a warm and funny film", "scores": True},
                {"inputs": ["a warm film", "two long hours"], "calibrate": True, "members": True},
            ]
        }
    )

    input: Input | None = None
    inputs: list[Input] | None = Field(default=None, min_length=1)
    stream: bool = Field(default=False, description="Answer one `input` as server-sent events.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.input is None) == (self.inputs is None):
            raise ValueError("give either `input` or `inputs`")
        if self.stream and self.input is None:
            raise ValueError("a stream takes one `input`")
        return self


class Request(Options):
    """One row of a mixed request."""

    task: Reference
    input: Input


class MixedBody(Options):
    """Rows of any tasks as `requests`; or one `input` for many `tasks` (fan-out), with options for all of them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"tasks": ["sentiment", "topic@2", "subjectivity:canary"], "input": "a warm film", "scores": True},
                {"requests": [{"task": "sentiment", "input": "a warm film"}, {"task": "topic", "input": "Rates rise"}]},
            ]
        }
    )

    requests: list[Request] | None = Field(default=None, min_length=1)
    tasks: list[Reference] | None = Field(default=None, min_length=1)
    input: Input | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.requests is None) == (self.tasks is None):
            raise ValueError("give either `requests`, or `tasks` with `input`")
        if (self.tasks is None) != (self.input is None):
            raise ValueError("`input` goes with `tasks`; in `requests` each row has its own")
        if self.requests is not None and self.model_fields_set != {"requests"}:
            raise ValueError("options stand in each of `requests`, not beside them")
        return self

    def fan_out(self) -> tuple[list[str], Input]:
        """The references and their one input. Only of a body without `requests`."""
        assert self.tasks is not None
        assert self.input is not None
        return self.tasks, self.input


class UsageBody(Reply):
    """Tokens of one row or of all. `prompt_tokens` counts text, `virtual_tokens` the prompt's learned vectors."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    virtual_tokens: int = 0

    def __add__(self, other: UsageBody) -> UsageBody:
        return UsageBody(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
            virtual_tokens=self.virtual_tokens + other.virtual_tokens,
        )


class MemberBody(Reply):
    """One member's own answer in an ensemble. Where the members choose each token together (free text by `mean`) they
    have no text of their own, and `logprob` is the log-probability that the member alone gives the common text."""

    version: int
    digest: str
    text: str | None = None
    label: str | None = None
    scores: dict[str, float] | None = None
    logprob: float | None = None
    usage: UsageBody | None = None


class Output(Reply):
    """One row's answer, pinned to the version that gave it (an ensemble's first); or `error`, and then no text."""

    task: str
    version: int | None = None
    digest: str | None = None
    text: str | None = None
    label: str | None = None
    scores: dict[str, float] | None = Field(default=None, description="Label to probability, where asked for.")
    abstained: bool | None = Field(
        default=None,
        description="Whether the best label was under the task's `abstain_below`; null for a task that always answers.",
    )
    agreement: float | None = Field(
        default=None, description="Ensembles: share of the members whose own answer is this one."
    )
    finish_reason: str = Field(description="stop | length | label | cancelled | timeout | drain | error")
    usage: UsageBody | None = Field(default=None, description="Of an ensemble: the sum over its members.")
    members: list[MemberBody] | None = Field(
        default=None, description="An ensemble's members with their own answers, where asked for."
    )
    error: ErrorDetail | None = None


class GenerateAnswer(Reply):
    id: str
    task: str
    outputs: list[Output]
    usage: UsageBody


class MixedAnswer(Reply):
    id: str
    outputs: list[Output]
    usage: UsageBody
