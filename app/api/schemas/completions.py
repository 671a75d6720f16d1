"""The wire form of OpenAI's completions and models, as its clients send and read it.

Fields that would change the answer and that this service cannot honour are accepted only with the value that means
nothing; any other value is refused by the route, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.base import Ask, Reference, Reply
from app.api.schemas.generate import StopString

Prompt = Annotated[str | Annotated[list[str], Field(min_length=1)], Field(examples=["a gorgeous, witty film"])]


class StreamOptions(Ask):
    include_usage: bool = False
    include_obfuscation: bool = False


class CompletionBody(Ask):
    """`model` is a task reference; `prompt` is the input of a task with one field."""

    model: Reference
    prompt: Prompt
    max_tokens: int | None = Field(None, ge=1, le=4096)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: StopString | Annotated[list[StopString], Field(max_length=8)] | None = None
    seed: int | None = Field(None, ge=0)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=512, description="Accepted and not used.")
    n: int | None = Field(None, ge=1)
    best_of: int | None = Field(None, ge=1)
    echo: bool | None = None
    suffix: str | None = None
    logprobs: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    def unsupported(self) -> str | None:
        """The first field that asks for what this service cannot do, if any."""
        neutral: dict[str, tuple[Any, ...]] = {
            "n": (None, 1),
            "best_of": (None, 1),
            "echo": (None, False),
            "suffix": (None, ""),
            "logprobs": (None,),
            "presence_penalty": (None, 0),
            "frequency_penalty": (None, 0),
            "logit_bias": (None, {}),
        }
        return next((name for name, values in neutral.items() if getattr(self, name) not in values), None)


class CompletionUsage(Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    virtual_tokens: int


class Choice(Reply):
    index: int
    text: str
    logprobs: None = None
    finish_reason: str | None


class Completion(Reply):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[Choice]
    usage: CompletionUsage | None = None


class Model(Reply):
    """A task as a model: `root` is the version that answers now, `parent` the backbone."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "chorus"
    root: str
    parent: str


class ModelList(Reply):
    object: Literal["list"] = "list"
    data: list[Model]
