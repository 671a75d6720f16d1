"""The service: text in, text out, on top of the engine. The only bridge between asyncio and the engine's thread.

It tokenises in a small pool of threads, refuses what does not fit, bounds the queue, and turns the engine's events into
answers and streams. A caller that goes away (its asyncio task is cancelled, its stream closed) cancels its row.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

import torch

from app.backbone import Backbone, Decoding, LoadedPrompt, Row, encode_row
from app.engine.answers import Answer, Ask, StreamEvent, Usage, label_answer
from app.engine.config import EngineConfig
from app.engine.detokenizer import TextStream
from app.engine.engine import Engine
from app.engine.golden import check_golden
from app.engine.load import DrainRate
from app.engine.thread import Command, EngineThread
from app.engine.types import Capabilities, EngineStats, Event, FinishReason, Request, Sampling
from app.errors import (
    ChorusError,
    ContextTooLong,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    Overloaded,
    RequestCancelled,
)

log = logging.getLogger(__name__)


@dataclass
class _Flight:
    """A request on its way, as the event loop sees it."""

    request: Request
    prompt: LoadedPrompt
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    ended: bool = False
    token_at: float | None = None


class EngineService:
    """Answers inputs of loaded prompts. One per process and backbone; start it inside the event loop that uses it."""

    def __init__(self, backbone: Backbone, config: EngineConfig) -> None:
        self.backbone, self.config = backbone, config
        self._engine = Engine(backbone, config)
        self._thread = EngineThread(self._engine, self._deliver, threads=config.threads)
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="chorus-tokenize")
        self._flights: dict[str, _Flight] = {}
        self._ids = itertools.count()
        self._admitted: set[str] = set()
        self._rate = DrainRate()
        self._taken = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.draining = False

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self, drain_s: float) -> None:
        """Refuse newcomers, let running requests finish for `drain_s` seconds, end the rest with `drain`."""
        self.draining = True
        if not await self._quiet_within(drain_s):
            for request_id in list(self._flights):
                self._send(_cancel(request_id, "drain"))
            await self._quiet_within(5)
        await asyncio.to_thread(self._thread.stop)
        self._pool.shutdown(wait=False)

    async def admit(self, prompt: LoadedPrompt) -> None:
        """Make a prompt resident and replay its golden outputs, once per digest.

        Raises:
            VersionUnavailable: an answer here differs from the one its trainer recorded.
        """
        if prompt.digest in self._admitted:
            return
        await check_golden(prompt, self._golden_answer, dtype=self.backbone.dtype)
        self._admitted.add(prompt.digest)

    async def answer(
        self,
        prompt: LoadedPrompt,
        input: Mapping[str, str],
        *,
        decoding: Decoding,
        seed: int | None = None,
        timeout_s: float,
        tenant: str = "",
    ) -> Answer:
        """Answer one input. `tenant` is an opaque id of the caller.

        Raises:
            InvalidRequest, ContextTooLong: the input does not fit the task or the context.
            Overloaded, Draining: try again later. DeadlineExceeded: `timeout_s` ran out. EngineFailure: our fault.
        """
        async with self._submitted(prompt, input, decoding, seed, timeout_s) as flight:
            if prompt.verbalizer is not None:
                return await self._label(flight)
            stream = self._text_stream(flight, decoding)
            parts, tokens = [], []
            async for text, token, finish in self._texts(flight, stream):
                parts.append(text)
                tokens += [] if token is None else [token]
                if finish is not None:
                    return Answer(
                        "".join(parts), finish, _usage(flight.request.row, len(tokens)), token_ids=tuple(tokens)
                    )
        raise AssertionError("a request ends exactly once")

    async def answer_together(
        self, asks: Sequence[Ask], *, timeout_s: float, tenant: str = ""
    ) -> list[Answer | ChorusError]:
        """Answer several rows at once, in the order asked. An error of one row stands in its own place."""

        async def one(ask: Ask) -> Answer | ChorusError:
            try:
                return await self.answer(
                    ask.prompt,
                    ask.input,
                    decoding=ask.decoding,
                    seed=ask.seed,
                    timeout_s=timeout_s,
                    tenant=tenant,
                )
            except ChorusError as error:
                return error

        return list(await asyncio.gather(*(one(ask) for ask in asks)))

    async def stream(
        self,
        prompt: LoadedPrompt,
        input: Mapping[str, str],
        *,
        decoding: Decoding,
        seed: int | None = None,
        timeout_s: float,
        tenant: str = "",
    ) -> AsyncGenerator[StreamEvent, None]:
        """The same answer piece by piece; errors as for `answer`, those before the first event raised at once."""
        async with self._submitted(prompt, input, decoding, seed, timeout_s) as flight:
            if prompt.verbalizer is not None:
                answer = await self._label(flight)
                yield StreamEvent(answer.text, answer.finish_reason, answer.usage)
                return
            count = 0
            async for text, token, finish in self._texts(flight, self._text_stream(flight, decoding)):
                count += token is not None
                if text or finish is not None:
                    usage = _usage(flight.request.row, count) if finish is not None else None
                    yield StreamEvent(text, finish, usage)

    async def check_ready(self) -> None:
        """One real token, from begin to end. Raises what stands in the way."""
        bos = self.backbone.tokenizer.bos_id
        row = Row((bos if bos is not None else 0,))
        request = self._request(row, None, Sampling(max_tokens=1), None, 10.0)
        flight = _Flight(request, prompt=None)  # type: ignore[arg-type]  # a bare row has no prompt
        async with self._in_flight(flight):
            event = await asyncio.wait_for(flight.events.get(), timeout=15)
        if event.finish not in ("stop", "length"):
            raise EngineFailure("the engine does not answer")

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def capabilities(self) -> Capabilities:
        return self._engine.capabilities()

    @property
    def max_context(self) -> int:
        return self._engine.max_context

    def set_threads(self, count: int) -> None:
        """CPU threads of the model, from its next step on."""
        self._send(lambda _: torch.set_num_threads(max(1, count)))

    # the way in

    @asynccontextmanager
    async def _submitted(
        self, prompt: LoadedPrompt, input: Mapping[str, str], decoding: Decoding, seed: int | None, timeout_s: float
    ) -> AsyncIterator[_Flight]:
        with self._place():  # before any work is spent on it
            loop = asyncio.get_running_loop()
            row = await loop.run_in_executor(
                self._pool, lambda: encode_row(self.backbone.tokenizer, prompt.template, prompt.bos, input)
            )
            sampling = None if prompt.verbalizer is not None else _sampling(decoding, seed, input)
            self._check_length(row, prompt, sampling)
            digest = prompt.digest if prompt.vectors is not None else None
            flight = _Flight(self._request(row, digest, sampling, prompt, timeout_s), prompt)
            async with self._in_flight(flight):
                yield flight

    @asynccontextmanager
    async def _in_flight(self, flight: _Flight) -> AsyncIterator[None]:
        request, prompt = flight.request, flight.prompt
        self._flights[request.id] = flight
        self._quiet.clear()
        vectors = prompt.vectors if request.digest is not None else None

        def submit(engine: Engine) -> None:
            try:
                if vectors is not None and request.digest is not None:
                    engine.load(request.digest, vectors)
                engine.submit(request)
            except (KeyError, ValueError, RuntimeError) as error:  # it never got in; it still gets its ending
                log.error("a request could not be submitted", extra={"error": repr(error)})
                self._deliver([Event(request.id, finish="error", error="the engine did not take this request")])

        self._send(submit)
        try:
            yield
        finally:
            if not flight.ended:
                self._send(_cancel(request.id, "cancelled"))
            self._flights.pop(request.id, None)
            if not self._flights:
                self._quiet.set()

    def _request(
        self, row: Row, digest: str | None, sampling: Sampling | None, prompt: LoadedPrompt | None, timeout_s: float
    ) -> Request:
        verbalizer = prompt.verbalizer if prompt is not None else None
        now = time.monotonic()
        return Request(f"r{next(self._ids)}", row, digest, now + timeout_s, sampling, verbalizer, arrived=now)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Take one of the places among running and waiting rows, or refuse."""
        if self.draining:
            raise Draining("this replica is stopping", retry_after_s=2)
        if not self._thread.alive:
            raise EngineFailure("the engine's thread has died")
        waiting = self._taken - self.config.max_rows
        if waiting >= self.config.max_queued_rows:
            raise Overloaded(
                f"{waiting} rows are waiting, which is the limit", retry_after_s=self._rate.seconds_for(waiting)
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    def _check_length(self, row: Row, prompt: LoadedPrompt, sampling: Sampling | None) -> None:
        new = sampling.max_tokens if sampling else 0
        words = prompt.verbalizer.branch_tokens if prompt.verbalizer else 0
        if row.total + new + words > self.max_context:
            raise ContextTooLong(
                f"{row.text_tokens} text tokens, {row.virtual_tokens} virtual tokens and {new or words} "
                f"{'new tokens' if sampling else 'label tokens'} exceed the context of {self.max_context}",
                param="input",
            )

    def _send(self, command: Command) -> None:
        self._thread.send(command)

    async def _quiet_within(self, seconds: float) -> bool:
        """Whether nothing is in flight any more, after waiting for at most `seconds`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), seconds)
        return self._quiet.is_set()

    # the way out

    def _deliver(self, events: list[Event]) -> None:
        """Called on the engine's thread: one hop to the event loop for all events of a step."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hand_out, events)

    def _hand_out(self, events: list[Event]) -> None:
        now, between = time.monotonic(), self._engine.stats().inter_token_seconds
        for event in events:
            flight = self._flights.get(event.request_id)
            if event.finish is not None:
                self._rate.count()
            if flight is not None:
                if event.token is not None:
                    if flight.token_at is not None:
                        between.add(now - flight.token_at)
                    flight.token_at = now
                flight.ended = event.finish is not None
                flight.events.put_nowait(event)

    async def _next(self, flight: _Flight) -> Event:
        event = await flight.events.get()
        if event.finish == "error":
            raise EngineFailure(event.error or "the model failed")
        if event.finish == "cancelled":
            raise RequestCancelled("the request was cancelled")
        return event

    async def _label(self, flight: _Flight) -> Answer:
        event = await self._next(flight)
        _raise_unfinished(event.finish)
        verbalizer = flight.prompt.verbalizer
        assert verbalizer is not None
        assert event.scores is not None
        return label_answer(verbalizer.labels, event.scores, _usage(flight.request.row, 0))

    def _text_stream(self, flight: _Flight, decoding: Decoding) -> TextStream:
        template = flight.prompt.template
        return TextStream(
            self.backbone.tokenizer,
            context=flight.request.row.ids,
            stop=decoding.stop,
            separator=template.separator,
        )

    async def _texts(
        self, flight: _Flight, stream: TextStream
    ) -> AsyncIterator[tuple[str, int | None, FinishReason | None]]:
        """(text, token, finish) until the end; a stop string ends the row early."""
        begun = False
        while True:
            event = await self._next(flight)
            if not begun:
                _raise_unfinished(event.finish)
            begun = True
            text = stream.push(event.token) if event.token is not None else ""
            if stream.stopped:
                yield text, event.token, "stop"
                return
            if event.finish is not None:
                text += stream.finish()
                yield text, event.token, "stop" if stream.stopped else event.finish
                return
            yield text, event.token, None

    async def _golden_answer(self, prompt: LoadedPrompt, input: Mapping[str, str], max_tokens: int) -> Answer:
        decoding = Decoding(max_tokens=max_tokens)
        return await self.answer(prompt, input, decoding=decoding, timeout_s=60)


def _sampling(decoding: Decoding, seed: int | None, input: Mapping[str, str]) -> Sampling:
    """Without a seed, sampled answers draw one from the clock; greedy ones need none."""
    if seed is None:
        words = hashlib.sha256(repr(sorted(input.items())).encode("utf-8", "replace")).digest()
        seed = time.monotonic_ns() ^ int.from_bytes(words[:6], "big") if decoding.temperature > 0 else 0
    return Sampling(decoding.max_tokens, decoding.temperature, decoding.top_p, decoding.top_k, seed & (2**62 - 1))


def _cancel(request_id: str, reason: FinishReason) -> Command:
    return lambda engine: engine.cancel(request_id, reason)


def _usage(row: Row, completion: int) -> Usage:
    return Usage(prompt_tokens=row.text_tokens, completion_tokens=completion, virtual_tokens=row.virtual_tokens)


def _raise_unfinished(finish: FinishReason | None) -> None:
    """Errors for rows that ended before they had anything to show."""
    if finish == "timeout":
        raise DeadlineExceeded("the deadline passed before the answer was there", param="timeout_s")
    if finish == "drain":
        raise Draining("this replica stopped before the answer was there")
