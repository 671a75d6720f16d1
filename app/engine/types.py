"""The engine's nouns: plain, picklable data. Requests name prompts by digest; all length sums stand here, once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from app.backbone.rows import Row
from app.backbone.verbalizer import Verbalizer
from app.telemetry.tally import COUNTS, SECONDS, Tally

FinishReason = Literal["stop", "length", "label", "cancelled", "timeout", "drain", "error"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep everything. The same `seed` gives
    the same tokens whatever else is in the batch."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """One group: a row that either generates (`sampling`) or has its labels scored (`verbalizer`).

    `digest` names a prompt that was loaded before, None for a hand-written one. `deadline` and `arrived` are on the
    engine's clock. Admitted, cancelled and failed whole.
    """

    id: str
    row: Row
    digest: str | None
    deadline: float
    sampling: Sampling | None = None
    verbalizer: Verbalizer | None = None
    arrived: float | None = None

    @property
    def new_tokens(self) -> int:
        """Tokens its prefill computes when the prompt's keys and values are cached."""
        return self.row.total - self.row.prefix + (self.verbalizer.branch_tokens if self.verbalizer else 0)

    @property
    def places(self) -> int:
        """Places it takes in a slot at most: virtual tokens, text, and answer or label words."""
        answer = self.sampling.max_tokens if self.sampling else 0
        return self.row.total + answer + (self.verbalizer.branch_tokens if self.verbalizer else 0)


@dataclass(frozen=True)
class Event:
    """What became of a request in one step: a token, the label scores, an end, or several of these at once.
    The event with `finish` is its last, and there is exactly one."""

    request_id: str
    token: int | None = None
    scores: tuple[float, ...] | None = None
    finish: FinishReason | None = None
    error: str | None = None


def _sizes() -> Tally:
    return Tally(COUNTS)


def _times() -> Tally:
    return Tally(SECONDS)


@dataclass
class EngineStats:
    """Counters since the start, gauges of now, and tallies: rows and different prompts of each step by phase, seconds
    from a row's arrival to its prefill, seconds between two tokens of a row."""

    running: int = 0
    waiting: int = 0
    steps_prefill: int = 0
    steps_decode: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    padding_tokens: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    prefix_hits: int = 0
    prefix_misses: int = 0
    prefix_evictions: int = 0
    prefix_bytes: int = 0
    resident_prompts: int = 0
    prefill_rows: Tally = field(default_factory=_sizes)
    prefill_prompts: Tally = field(default_factory=_sizes)
    decode_rows: Tally = field(default_factory=_sizes)
    decode_prompts: Tally = field(default_factory=_sizes)
    queue_seconds: Tally = field(default_factory=_times)
    inter_token_seconds: Tally = field(default_factory=_times)

    @property
    def prefix_queries(self) -> int:
        return self.prefix_hits + self.prefix_misses


@dataclass(frozen=True)
class Capabilities:
    """What this engine can do with its backbone; what is missing is a typed error at publication."""

    family: str
    runner: str
    max_context: int
    virtual_tokens: bool = True
    label_scoring: bool = True
    prefix_reuse: bool = True
