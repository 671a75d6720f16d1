"""Rows on their way, as the event loop sees them, and how their events become answers and texts."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from app.backbone import BackboneTokenizer, Decoding, LoadedPrompt, Row
from app.engine.answers import Answer, Coupled, Timing, Usage, label_answer
from app.engine.detokenizer import TextStream
from app.engine.types import Event, FinishReason, Request, RowRequest
from app.errors import ChorusError, CutOff, DeadlineExceeded, EngineFailure, RequestCancelled


class Inbox:
    """A row's events in order, for one reader. A `patient` reader is woken by the last of them alone: waking the event
    loop for every token of every row costs as much as a good part of a decode step."""

    __slots__ = ("_events", "_waiter", "patient")

    def __init__(self) -> None:
        self.patient = False
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put_nowait(self, event: Event) -> None:
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done() and self._ripe:
            self._waiter.set_result(None)

    async def get(self) -> Event:
        while not self._ripe:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._events.popleft()

    @property
    def _ripe(self) -> bool:
        return bool(self._events) and (not self.patient or self._events[-1].finish is not None)


@dataclass
class Flight:
    """One row of a request. `cost`: its tokens as the queue's bound counts them; `begun`: it has left the queue;
    `token_at`: when its newest token came; `prefilled`: when its prefill began and ended; `ended_at`: its
    last event."""

    request: Request
    index: int
    prompt: LoadedPrompt | None
    cost: int = 0
    events: Inbox = field(default_factory=Inbox)
    begun: bool = False
    ended: bool = False
    token_at: float | None = None
    prefilled: tuple[float, float] | None = None
    ended_at: float | None = None

    @property
    def timing(self) -> Timing | None:
        """None for a row that never got its turn."""
        if self.prefilled is None or self.request.arrived is None:
            return None
        began, first = self.prefilled
        return Timing(self.request.arrived, began, first, self.ended_at or self.token_at or first)

    @property
    def asked(self) -> RowRequest:
        return self.request.rows[self.index]

    @property
    def row(self) -> Row:
        return self.asked.row

    async def next(self) -> Event:
        """The row's next event. Raises EngineFailure or RequestCancelled for a row that ended so."""
        event = await self.events.get()
        if event.finish == "error":
            raise EngineFailure(event.error or "the model failed")
        if event.finish == "cancelled":
            raise RequestCancelled("the request was cancelled")
        return event


class Piece(NamedTuple):
    """Text that has become certain; `tokens` are all of the answer's so far, `finish` is set on the last piece."""

    text: str
    tokens: list[int]
    finish: FinishReason | None


@dataclass
class Writing:
    """A text as it is being written: by one row, or by the rows of a coupled group, each of which says what it thinks
    of every token."""

    flights: Sequence[Flight]
    decoding: Decoding
    tokenizer: BackboneTokenizer

    def __post_init__(self) -> None:
        self.logprobs = [0.0] * len(self.flights)
        self.agrees = [True] * len(self.flights)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The text piece by piece; a stop string ends it early. What ended before its first token is an error."""
        first = self.flights[0]
        assert first.prompt is not None
        stream = TextStream(
            self.tokenizer,
            context=() if self.tokenizer.family == "seq2seq" else first.row.ids,  # a text of its own there
            stop=self.decoding.stop,
            separator=first.prompt.template.separator,
        )
        tokens: list[int] = []
        while True:
            event = await self._step()
            if not tokens:
                raise_unfinished(event.finish)
            if event.token is not None:
                tokens.append(event.token)
            text = stream.push(event.token) if event.token is not None else ""
            if event.finish is not None and not stream.stopped:
                text += stream.finish()
            finish = "stop" if stream.stopped else event.finish
            yield Piece(text, tokens, finish)
            if finish is not None:
                return

    async def answer(self) -> Answer:
        """The whole text. Nothing but a stop string asks for a look at it before its end."""
        for flight in self.flights:
            flight.events.patient = not self.decoding.stop
        parts = []
        async for text, tokens, finish in self.pieces():
            parts.append(text)
            if finish is not None:
                usage = self.usage(len(tokens))
                return Answer("".join(parts), finish, usage, token_ids=tuple(tokens), timing=self.timing)
        raise AssertionError("a row ends exactly once")

    def coupled(self, answer: Answer) -> Coupled:
        return Coupled(answer, tuple(self.logprobs), self.agreement)

    @property
    def agreement(self) -> float:
        """The share of members that would have written the same by themselves, choosing what is most likely."""
        return sum(self.agrees) / len(self.agrees)

    @property
    def timing(self) -> Timing | None:
        """The first row's; all take their turns together."""
        return self.flights[0].timing

    def usage(self, completion: int) -> Usage:
        """Prompts of all members are counted, and the text they wrote together once."""
        usages = [usage_of(flight.row, 0) for flight in self.flights]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in usages),
            completion_tokens=completion,
            virtual_tokens=sum(usage.virtual_tokens for usage in usages),
        )

    async def _step(self) -> Event:
        """The next event of every row; the first row's speaks for all."""
        events = [await flight.next() for flight in self.flights]
        for i, event in enumerate(events):
            if event.view is not None:
                self.logprobs[i] += event.view.logprob
                self.agrees[i] &= event.view.agrees
        return events[0]


async def read_label(flight: Flight) -> Answer:
    """The answer of a row whose labels are scored."""
    event = await flight.next()
    raise_unfinished(event.finish)
    verbalizer = flight.asked.verbalizer
    assert verbalizer is not None
    assert event.scores is not None
    return label_answer(verbalizer.labels, event.scores, usage_of(flight.row, 0), flight.timing)


def usage_of(row: Row, completion: int) -> Usage:
    return Usage(prompt_tokens=row.text_tokens, completion_tokens=completion, virtual_tokens=row.virtual_tokens)


def raise_unfinished(finish: FinishReason | None) -> None:
    """Errors for rows that ended before they had anything to show."""
    if finish == "timeout":
        raise DeadlineExceeded("the deadline passed before the answer was there", param="timeout_s")
    if finish == "drain":
        raise CutOff("this replica stopped before the answer was there")


Outcome = Flight | ChorusError
"""A row that was submitted, or why it was not."""


def flight_of(outcome: Outcome) -> Flight:
    """The flight, or its error raised."""
    if isinstance(outcome, ChorusError):
        raise outcome
    return outcome
