"""What callers of the service get."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from app.backbone import Decoding, LoadedPrompt
from app.engine.types import FinishReason


@dataclass(frozen=True)
class Ask:
    """One row that is asked for."""

    prompt: LoadedPrompt
    input: Mapping[str, str]
    decoding: Decoding
    seed: int | None = None


class Timing(NamedTuple):
    """When a row came, when its prefill began, when its first token or its scores were there, and when its last, in
    seconds on the monotonic clock."""

    arrived: float
    began: float
    first: float
    ended: float


@dataclass(frozen=True)
class Usage:
    """`prompt_tokens` are the text's; virtual tokens are counted apart and in the total."""

    prompt_tokens: int
    completion_tokens: int
    virtual_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens + self.virtual_tokens


@dataclass(frozen=True)
class Answer:
    """One row's answer. Label tasks have `label`, `scores` (probabilities over the labels) and `log_scores`; their
    `text` is the label. Others have the generated `text` and `token_ids`."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    label: str | None = None
    scores: dict[str, float] | None = None
    log_scores: dict[str, float] | None = None
    token_ids: tuple[int, ...] = ()
    timing: Timing | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Coupled:
    """A text that several members wrote as one. `members`: each one's summed log-probability of the chosen tokens, end
    token included; `agreement`: the share of members whose own most likely token was the chosen one at every step."""

    answer: Answer
    members: tuple[float, ...]
    agreement: float


@dataclass(frozen=True)
class StreamEvent:
    """A piece of text; the last event has `finish_reason`, `usage` and `timing`, and `members` and `agreement`
    where several members wrote it, see `Coupled`."""

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    members: tuple[float, ...] | None = None
    agreement: float | None = None
    timing: Timing | None = field(default=None, compare=False)


def label_answer(
    labels: Sequence[str], log_scores: Sequence[float], usage: Usage, timing: Timing | None = None
) -> Answer:
    """The most likely label, with probabilities normalised over the label set."""
    peak = max(log_scores)
    weights = [math.exp(score - peak) for score in log_scores]
    total = sum(weights)
    best = labels[max(range(len(labels)), key=log_scores.__getitem__)]
    return Answer(
        text=best,
        finish_reason="label",
        usage=usage,
        label=best,
        scores={label: weight / total for label, weight in zip(labels, weights, strict=True)},
        log_scores=dict(zip(labels, log_scores, strict=True)),
        timing=timing,
    )
