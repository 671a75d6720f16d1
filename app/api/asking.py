"""What the engine is asked for a row: its fields, decoding and deadline, once for each version that answers it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from app.api.auth.account import tenant
from app.api.pinning import Pinned
from app.api.schemas.generate import Input, Options
from app.engine import Answer, Ask
from app.errors import DeadlineExceeded, InvalidRequest
from app.settings import Settings
from prompt_store import Decoding

if TYPE_CHECKING:
    from app.backbone import LoadedPrompt
    from app.engine import EngineService


class Places:
    """What one request may have in the engine at a time: the rows that run, and three times as many that are ready, but
    at most half of the queue, in rows and in tokens at their longest. A large request leaves room to others and does
    not meet its own refusal."""

    def __init__(self, settings: Settings) -> None:
        longest = settings.max_queued_tokens // settings.max_context  # as many of the longest rows may wait
        ready = min(3 * settings.max_rows, settings.max_queued_rows // 2, longest // 2)
        self._count = settings.max_rows + ready
        self._free = asyncio.Semaphore(self._count)
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def hold(self, rows: int) -> AsyncIterator[None]:
        """Places for the rows of one group, in the order of asking."""
        taken = 0
        try:
            async with self._turn:  # two that collect places at once would wait for each other
                while taken < min(rows, self._count):
                    await self._free.acquire()
                    taken += 1
            yield
        finally:
            for _ in range(taken):
                self._free.release()


def asks_of(row: Pinned) -> list[Ask]:
    """One ask for each member. Raises InvalidRequest for an input that the task does not take."""
    return [
        Ask(prompt, fields_of(prompt, row.given), decoding_of(prompt, row.options), row.options.seed)
        for prompt in row.members
    ]


async def ask_in_parts(
    engine: EngineService, asks: Sequence[Ask], places: Places, *, size: int, deadline: float
) -> list[Answer | Exception]:
    """Groups of at most `size` rows, as many as may run at once. The failure of a group stands in the place of each of
    its rows."""
    parts = [asks[at : at + size] for at in range(0, len(asks), size)]

    async def ask(part: Sequence[Ask]) -> Sequence[Answer | Exception]:
        async with places.hold(len(part)):
            return await engine.answer_together(part, timeout_s=time_left(deadline), tenant=tenant())

    found = await asyncio.gather(*map(ask, parts), return_exceptions=True)
    answers: list[Answer | Exception] = []
    for part, outcome in zip(parts, found, strict=True):
        if isinstance(outcome, Exception):
            answers += [outcome] * len(part)
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            answers += outcome
    return answers


def fields_of(prompt: LoadedPrompt, given: Input) -> dict[str, str]:
    """The input as fields; a bare text is the only field of a task that has one."""
    if not isinstance(given, str):
        return given
    names = prompt.template.fields
    if len(names) != 1:
        wanted = ", ".join(names) or "none"
        raise InvalidRequest(
            f"{prompt.task} does not take a bare text: give an object with its fields ({wanted})", param="input"
        )
    return {names[0]: given}


def decoding_of(prompt: LoadedPrompt, options: Options) -> Decoding:
    """The version's own decoding, with what the request overrides."""
    asked: dict[str, Any] = {
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "stop": options.stops,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    return prompt.decoding.model_copy(update=given) if given else prompt.decoding


def deadline_of(settings: Settings, row: Pinned) -> float:
    """When the row must be answered, on the monotonic clock. Raises InvalidRequest as `timeout_of` does."""
    return row.arrived + timeout_of(settings, row.options)


def time_left(deadline: float) -> float:
    """Seconds. Raises DeadlineExceeded if there are none: no work is spent on what comes too late."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("the deadline passed before the row's turn came", param="timeout_s")
    return left


def timeout_of(settings: Settings, options: Options) -> float:
    """Seconds. Raises InvalidRequest beyond the longest that may be asked for."""
    if options.timeout_s is None:
        return settings.default_timeout_s
    if options.timeout_s > settings.max_timeout_s:
        raise InvalidRequest(f"timeout_s may be {settings.max_timeout_s:g} at most", param="timeout_s")
    return options.timeout_s
