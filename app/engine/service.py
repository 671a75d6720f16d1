"""The service: text in, text out, on top of the engine. The only bridge between asyncio and the engine's thread.

It tokenises in a small pool of threads, refuses what does not fit, bounds the queue, and turns the engine's events into
answers and streams. A caller that goes away (its asyncio task is cancelled, its stream closed) cancels its rows.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from app.backbone import Backbone, Decoding, LoadedPrompt, Row, SoftPrompt
from app.backbone.explain import VectorView, explain_vectors, prefix_norms
from app.backbone.openmp import compute_alone, give_team_back
from app.engine.admission import Admission
from app.engine.answers import Answer, Ask, Coupled, StreamEvent
from app.engine.board import FlightBoard
from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.flights import Flight, Outcome, Writing, flight_of, read_label
from app.engine.golden import check_golden
from app.engine.intake import common_text, encode_asks, sharing
from app.engine.strikes import Strikes
from app.engine.thread import Command, EngineThread, Told, cancel_command
from app.engine.types import Capabilities, EngineStats, Event, Request, RowRequest, Sampling
from app.engine.watchdog import Watchdog
from app.errors import CapabilityMissing, ChorusError, Draining, EngineFailure

log = logging.getLogger(__name__)

SHORT_CHARS = 1024
"""Texts up to this are tokenised where they are: some 50 µs, and handing them to another thread takes longer."""

_MAX_ADMITTED = 65_536
T = TypeVar("T")


class EngineService:
    """Answers inputs of loaded prompts. One per process and backbone; start it inside the event loop that uses it.

    All ways to ask raise Overloaded and Draining (try again later), and EngineFailure (our fault). `tenant` is an
    opaque id of the caller: tenants, and the tasks of each, share the engine fairly.
    """

    def __init__(self, backbone: Backbone, config: EngineConfig) -> None:
        self.backbone, self.config = backbone, config
        self._engine = Engine(backbone, config)
        self._thread = EngineThread(self._engine, self._deliver, threads=config.threads)
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="chorus-tokenize", initializer=compute_alone)
        self._ids = itertools.count()
        self._admitted: dict[str, None] = {}  # digests whose golden outputs hold here, the oldest first
        self._admission = Admission(config)
        self._strikes = Strikes()
        self._board = FlightBoard(self._admission, self._engine.stats(), self._strikes)
        self._watchdog = Watchdog(self._thread, stall_s=config.stall_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.draining = False

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        give_team_back()  # of the thread that made the engine: from here on the engine's own computes
        self._thread.start()
        self._watchdog.start()

    async def stop(self, drain_s: float) -> None:
        """Refuse newcomers, let running requests finish for `drain_s` seconds, end the rest with `drain`."""
        self.draining = True
        if not await self._board.quiet_within(drain_s):
            self._send(*(cancel_command(request_id, "drain") for request_id in self._board.request_ids))
            await self._board.quiet_within(5)
        await asyncio.to_thread(self._watchdog.stop)
        await asyncio.to_thread(self._thread.stop)
        self._pool.shutdown(wait=False)

    def check_room(self) -> None:
        """Raises Overloaded while every request would be refused."""
        self._admission.check_room()

    async def admit(self, prompt: LoadedPrompt) -> None:
        """Make a prompt resident and replay its golden outputs, once per digest.

        Raises:
            VersionUnavailable: an answer here differs from the one its trainer recorded.
        """
        if prompt.digest in self._admitted:
            return
        await check_golden(prompt, self._golden_answer, dtype=self.backbone.dtype)
        self._admitted[prompt.digest] = None
        if len(self._admitted) > _MAX_ADMITTED:  # a forgotten one is replayed once more if it is loaded again
            del self._admitted[next(iter(self._admitted))]

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
        """Answer one input.

        Raises:
            InvalidRequest, ContextTooLong: the input does not fit the task or the context.
            DeadlineExceeded: `timeout_s` ran out.
        """
        async with self._flying([Ask(prompt, input, decoding, seed)], timeout_s, tenant) as (outcome,):
            return await self._read(outcome, decoding)

    async def answer_together(
        self, asks: Sequence[Ask], *, timeout_s: float, tenant: str = ""
    ) -> list[Answer | ChorusError]:
        """Answer several rows, in the order asked: they are admitted and cancelled together and meet in one batch if
        slots allow; text that they begin with alike is computed once where the runner can. An error of one row stands
        in its own place."""

        async def one(outcome: Outcome, ask: Ask) -> Answer | ChorusError:
            try:
                return await self._read(outcome, ask.decoding)
            except ChorusError as error:
                return error

        async with self._flying(asks, timeout_s, tenant) as outcomes:
            return list(await asyncio.gather(*map(one, outcomes, asks)))

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
        asks = [Ask(prompt, input, decoding, seed)]
        async with self._flying(asks, timeout_s, tenant, whole=False) as (outcome,):
            if prompt.verbalizer is not None:
                answer = await self._read(outcome, decoding)
                yield StreamEvent(answer.text, answer.finish_reason, answer.usage, timing=answer.timing)
                return
            writing = Writing([flight_of(outcome)], decoding, self.backbone.tokenizer)
            async for text, tokens, finish in writing.pieces():
                if text or finish is not None:
                    usage = writing.usage(len(tokens)) if finish is not None else None
                    yield StreamEvent(text, finish, usage, timing=writing.timing if usage is not None else None)

    async def answer_coupled(self, asks: Sequence[Ask], *, timeout_s: float, tenant: str = "") -> Coupled:
        """One text by several members: at each step the mean of their next-token distributions, one token chosen from
        it by the first ask's decoding and seed, fed to every member. They end, fail and are cancelled together.

        Raises:
            CapabilityMissing: members with labels, or more than run at once.
            InvalidRequest, ContextTooLong, DeadlineExceeded: as `answer`, for any member.
        """
        async with self._coupled(asks, timeout_s, tenant) as writing:
            return writing.coupled(await writing.answer())

    async def stream_coupled(
        self, asks: Sequence[Ask], *, timeout_s: float, tenant: str = ""
    ) -> AsyncGenerator[StreamEvent, None]:
        """The same answer piece by piece; the last event has `members` and `agreement` too."""
        async with self._coupled(asks, timeout_s, tenant) as writing:
            async for text, tokens, finish in writing.pieces():
                if finish is not None:
                    usage = writing.usage(len(tokens))
                    logprobs = tuple(writing.logprobs)
                    yield StreamEvent(text, finish, usage, logprobs, writing.agreement, writing.timing)
                elif text:
                    yield StreamEvent(text)

    async def check_ready(self) -> None:
        """One real token, from begin to end. Raises what stands in the way."""
        bos = self.backbone.tokenizer.bos_id
        row = RowRequest(Row((bos if bos is not None else 0,)), sampling=Sampling(max_tokens=1))
        flight = Flight(self._request((row,), time.monotonic() + 10, ""), 0, prompt=None)
        async with self._in_flight([flight]):
            event = await asyncio.wait_for(flight.events.get(), timeout=15)
        if event.finish not in ("stop", "length"):
            raise EngineFailure("the engine does not answer")

    async def explain(self, prompt: LoadedPrompt, *, words: int) -> tuple[list[VectorView], list[list[float]]]:
        """Each vector with its nearest words, and per virtual token the norms of its keys and values; one is empty."""
        loop = asyncio.get_running_loop()
        views = await loop.run_in_executor(
            self._pool, lambda: explain_vectors(self.backbone, prompt.learned, words=words)
        )
        return views, prefix_norms(prompt.learned)

    async def between_steps(self, compute: Callable[[], T]) -> T:
        """What `compute` returns or raises, on the engine's thread: rows wait meanwhile, and nothing else computes."""
        return await self._thread.compute(compute)

    @property
    def stalled(self) -> bool:
        """Whether the engine hangs or has died, so that this process is about to end."""
        return self._watchdog.stalled

    def release(self, digest: str) -> None:
        """Forget a prompt that will not be asked for again."""
        self._send(lambda engine: engine.release(digest))

    def stats(self) -> EngineStats:
        """The engine's, with the threads it computes with now."""
        stats = self._engine.stats()
        stats.threads = self._thread.threads
        return stats

    def capabilities(self) -> Capabilities:
        return self._engine.capabilities()

    @property
    def max_context(self) -> int:
        return self._engine.max_context

    def set_threads(self, count: int) -> None:
        """CPU threads of the model, from its next step on: as many at most, fewer while others want the cores."""
        self._thread.set_threads(count)

    @asynccontextmanager
    async def _flying(
        self, asks: Sequence[Ask], timeout_s: float, tenant: str, *, whole: bool = True
    ) -> AsyncIterator[list[Outcome]]:
        """Submit rows together: for each ask its flight, or its error. Leaving cancels what has not ended. `whole`: the
        caller reads an answer when it has ended."""
        async with self._admitted_rows(asks, timeout_s) as (rows, deadline):
            outcomes: list[Outcome | RowRequest] = [*rows]
            good = {i: row for i, row in enumerate(rows) if isinstance(row, RowRequest)}
            for numbers, shared in sharing(good) if self._engine.shares_text else [([i], 0) for i in good]:
                task = asks[numbers[0]].prompt.task
                together = tuple(good[i] for i in numbers)
                patient = whole and not any(asks[i].decoding.stop for i in numbers)  # a stop string looks at each token
                request = self._request(together, deadline, task, tenant, shared=shared, patient=patient)
                for index, i in enumerate(numbers):
                    outcomes[i] = Flight(request, index, asks[i].prompt, cost=good[i].cost)
            done = [outcome for outcome in outcomes if not isinstance(outcome, RowRequest)]
            async with self._in_flight([outcome for outcome in done if isinstance(outcome, Flight)]):
                yield done

    @asynccontextmanager
    async def _coupled(self, asks: Sequence[Ask], timeout_s: float, tenant: str) -> AsyncIterator[Writing]:
        if not 1 <= len(asks) <= self._engine.capabilities().coupled_rows:
            raise CapabilityMissing(f"{len(asks)} members cannot write together; 1 to {self.config.max_rows} can")
        if any(ask.prompt.verbalizer is not None for ask in asks):
            raise CapabilityMissing("members that score labels do not write; take the mean of their answers")
        asks = [replace(ask, decoding=asks[0].decoding) for ask in asks]  # by which the first one writes for all
        async with self._admitted_rows(asks, timeout_s) as (rows, deadline):
            members: list[RowRequest] = []
            for row in rows:
                if isinstance(row, ChorusError):
                    raise row
                members.append(replace(row, sampling=(members or [row])[0].sampling))  # by one seed
            shared = common_text(members) if self._engine.shares_text else 0
            task = asks[0].prompt.task
            request = self._request(tuple(members), deadline, task, tenant, shared=shared, coupled=True)
            flights = [Flight(request, i, asks[i].prompt, cost=row.cost) for i, row in enumerate(members)]
            async with self._in_flight(flights):
                yield Writing(flights, asks[0].decoding, self.backbone.tokenizer)

    @asynccontextmanager
    async def _admitted_rows(
        self, asks: Sequence[Ask], timeout_s: float
    ) -> AsyncIterator[tuple[list[RowRequest | ChorusError], float]]:
        """The asks' rows, while places among running and waiting rows are held for them, and their deadline."""
        deadline = time.monotonic() + timeout_s
        if self.draining:
            raise Draining("this replica is stopping", retry_after_s=2)
        if not self._thread.alive:
            raise EngineFailure("the engine's thread has died")
        with self._admission.places(len(asks)):  # before any work is spent on them
            yield [self._strikes.refused_or(row) for row in await self._encode(asks)], deadline

    async def _encode(self, asks: Sequence[Ask]) -> list[RowRequest | ChorusError]:
        """On a thread of its own, but for texts so short that changing threads would take longer."""
        if sum(len(text) for ask in asks for text in ask.input.values()) <= SHORT_CHARS:
            return encode_asks(self.backbone.tokenizer, asks, max_context=self.max_context)
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, lambda: encode_asks(self.backbone.tokenizer, asks, max_context=self.max_context)
        )

    @asynccontextmanager
    async def _in_flight(self, flights: Sequence[Flight]) -> AsyncIterator[None]:
        """Submit the flights' requests, all before the engine's next step."""
        self._board.add(flights)
        requests = {flight.request.id: flight.request for flight in flights}
        prompts = {
            flight.prompt.digest: flight.prompt.learned
            for flight in flights
            if flight.prompt is not None and flight.prompt.learned is not None
        }
        self._send(*(self._submission(request, prompts) for request in requests.values()))
        try:
            yield
        finally:
            self._send(*(cancel_command(request_id, "cancelled") for request_id in self._board.remove(flights)))

    def _submission(self, request: Request, prompts: Mapping[str, SoftPrompt]) -> Command:
        def submit(engine: Engine) -> None:
            try:
                engine.submit(request, prompts)
            except (KeyError, ValueError, RuntimeError) as error:  # it never got in; it still gets its ending
                log.error("a request could not be submitted", extra={"error": repr(error)})
                message = "the engine did not take this request"
                failed = [Event(request.id, finish="error", error=message, row=i) for i in range(len(request.rows))]
                self._deliver([(time.monotonic(), failed)])

        return submit

    def _request(
        self,
        rows: tuple[RowRequest, ...],
        deadline: float,
        task: str = "",
        tenant: str = "",
        *,
        shared: int = 0,
        coupled: bool = False,
        patient: bool = False,
    ) -> Request:
        now = time.monotonic()
        return Request(f"r{next(self._ids)}", rows, deadline, shared, coupled, (tenant, task), now, patient)

    def _send(self, *commands: Command) -> None:
        if commands:
            self._thread.send(*commands)

    def _deliver(self, steps: list[Told]) -> None:
        """On the engine's thread: one hop to the event loop for all events of a step, or of several."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._board.hand_out, steps)

    async def _read(self, outcome: Outcome, decoding: Decoding) -> Answer:
        flight = flight_of(outcome)
        if flight.asked.verbalizer is not None:
            return await read_label(flight)
        return await Writing([flight], decoding, self.backbone.tokenizer).answer()

    async def _golden_answer(self, prompt: LoadedPrompt, input: Mapping[str, str], max_tokens: int) -> Answer:
        decoding = Decoding(max_tokens=max_tokens)
        return await self.answer(prompt, input, decoding=decoding, timeout_s=60)
