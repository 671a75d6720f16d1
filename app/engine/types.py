"""The engine's nouns: plain, picklable data. Requests name prompts by digest; all length sums stand here, once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from app.backbone.rows import Row
from app.backbone.verbalizer import Verbalizer
from app.telemetry.tally import COUNTS, SECONDS, Tally

FinishReason = Literal["stop", "length", "label", "cancelled", "timeout", "drain", "error"]
Flow = tuple[str, str]  # (tenant, task): who shares fairly with whom


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
class RowRequest:
    """A row that either generates (`sampling`) or has its labels scored (`verbalizer`), and could run alone.
    `digest` names a prompt that was loaded before, None for a hand-written one."""

    row: Row
    digest: str | None = None
    sampling: Sampling | None = None
    verbalizer: Verbalizer | None = None

    @property
    def new_tokens(self) -> int:
        """Tokens its prefill computes when the prompt's keys and values are cached."""
        return self.row.total - self.row.prefix + (self.verbalizer.branch_tokens if self.verbalizer else 0)

    @property
    def answer_tokens(self) -> int:
        """Places its answer takes at most: new tokens, or label words."""
        return (self.sampling.max_tokens if self.sampling else 0) + (
            self.verbalizer.branch_tokens if self.verbalizer else 0
        )

    @property
    def places(self) -> int:
        """Places it takes in a slot at most: virtual tokens, text, and answer or label words."""
        return self.row.total + self.answer_tokens

    @property
    def cost(self) -> int:
        """Tokens of work at most, those of its prompt included: what fairness and the bound of the queue count."""
        return self.places


@dataclass(frozen=True)
class Request:
    """One group of rows: admitted and cancelled whole; `deadline` and `arrived` are on the engine's clock.

    `shared`: leading ids, plain text, that all rows have in common; they may be computed once. `coupled`: the rows
    write one text together, each token chosen from the mean of their distributions; they fail whole. `flow` is whose
    turn it takes. `patient`: its caller reads nothing before a row's end, so that its tokens may be told late.
    """

    id: str
    rows: tuple[RowRequest, ...]
    deadline: float
    shared: int = 0
    coupled: bool = False
    flow: Flow = ("", "")
    arrived: float | None = None
    patient: bool = False

    @classmethod
    def single(
        cls,
        id: str,
        row: Row,
        digest: str | None,
        deadline: float,
        sampling: Sampling | None = None,
        verbalizer: Verbalizer | None = None,
        *,
        flow: Flow = ("", ""),
        arrived: float | None = None,
    ) -> Request:
        """A group of one row."""
        return cls(id, (RowRequest(row, digest, sampling, verbalizer),), deadline, flow=flow, arrived=arrived)

    @property
    def cost(self) -> int:
        return sum(row.cost for row in self.rows) - self.shared * (len(self.rows) - 1)

    def check(self, *, places: int, slots: int) -> None:
        """Raise ValueError for a group that can never run in `slots` of `places` places, or contradicts itself."""
        if not self.rows or any(row.row.total < 1 for row in self.rows):
            raise ValueError("a group has rows, and a row has tokens")
        longest = max(row.places for row in self.rows)
        if longest > places:
            raise ValueError(f"{longest} tokens exceed the context of {places}")
        if any((row.sampling is None) == (row.verbalizer is None) for row in self.rows):
            raise ValueError("a row either generates or has its labels scored")
        if self.coupled and len({row.sampling for row in self.rows} | {None}) != 2:
            raise ValueError("coupled rows generate, and all in the same way")
        if self.coupled and len(self.rows) > slots:
            raise ValueError(f"{len(self.rows)} coupled rows exceed the {slots} that run at once")
        text = self.rows[0].row.ids[: self.shared]
        if any(row.row.ids[: self.shared] != text or row.row.total <= self.shared for row in self.rows):
            raise ValueError("the rows do not share that text")
        if min(text, default=0) < 0:
            raise ValueError("virtual tokens cannot be shared")
        if text and any(row.row.prefix for row in self.rows):
            raise ValueError("rows whose beginning is kept with their prompt share no text")


class View(NamedTuple):
    """A member's own view of a token its coupled group chose: its log-probability at temperature 1, and whether the
    member would have chosen it too (its most likely token)."""

    logprob: float
    agrees: bool


class Event(NamedTuple):
    """What became of a row in one step: a token, the label scores, an end, or several of these at once. The event with
    `finish` is the row's last, and there is exactly one. Coupled rows also have their `view` of the token. `began`, on
    the first event of a row that got its turn: when its prefill began, on the engine's clock."""

    request_id: str
    token: int | None = None
    scores: tuple[float, ...] | None = None
    finish: FinishReason | None = None
    error: str | None = None
    row: int = 0
    view: View | None = None
    began: float | None = None


def _sizes() -> Tally:
    return Tally(COUNTS)


def _times() -> Tally:
    return Tally(SECONDS)


@dataclass
class EngineStats:
    """Counters since the start, gauges of now, and tallies: rows and different prompts of each step by phase, seconds
    from a row's arrival to its prefill, of its prefill, from there to its end for rows that generate, and between two
    tokens of a row. All count rows, not groups."""

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
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
    resident_bytes: int = 0
    threads: int = 0
    prefill_rows: Tally = field(default_factory=_sizes)
    prefill_prompts: Tally = field(default_factory=_sizes)
    decode_rows: Tally = field(default_factory=_sizes)
    decode_prompts: Tally = field(default_factory=_sizes)
    queue_seconds: Tally = field(default_factory=_times)
    prefill_seconds: Tally = field(default_factory=_times)
    decode_seconds: Tally = field(default_factory=_times)
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
    generation: bool = True
    prefix_reuse: bool = True
    coupled_rows: int = 1
