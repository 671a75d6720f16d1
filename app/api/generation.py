"""From rows as asked to rows as answered: through the engine, alone or as a group, with an ensemble's members made one.

One input for many tasks, and the members of an ensemble, are a group of the engine, which computes once what they have
in common. A row that fails says so in its own place; its neighbours go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from itertools import islice

from app.api.asking import Places, ask_in_parts, asks_of, deadline_of, time_left, timeout_of
from app.api.auth.account import tenant, unanswered_counts
from app.api.outputs import (
    answered,
    count_first,
    count_row,
    coupled_bodies,
    failed,
    failures_counted,
    member_body,
    partial,
)
from app.api.pinning import Pinned, pin, pin_or_error
from app.api.schemas.generate import Input, Options, Output, Request
from app.api.services import Services
from app.api.spans import row_answered
from app.engine import Answer, Ask
from app.engine.ensemble import mean, vote
from app.errors import InvalidRequest


async def answer_rows(services: Services, rows: Sequence[Request]) -> list[Output]:
    """Rows of any tasks, in the order asked, each for itself. Cancelling this cancels every row."""
    check_count(services, len(rows), "requests")
    pins = await pin(services.registry, (row.task for row in rows))
    pinned = [pin_or_error(services.draws, pins[row.task], row.input, row) for row in rows]
    return await answer_each(services, [row.task for row in rows], pinned)


async def answer_each(
    services: Services, refs: Sequence[str], rows: Sequence[Pinned | Exception], places: Places | None = None
) -> list[Output]:
    """Each row's answer or its failure, in order. `places` are the request's; None makes them."""
    places = places or Places(services.settings)

    async def answer(ref: str, row: Pinned | Exception) -> Output:
        if isinstance(row, Exception):
            return failed(ref, row, row)
        try:
            async with places.hold(len(row.members)):
                return await answer_one(services, row)
        except Exception as error:
            return failed(ref, row, error)

    return await asyncio.gather(*map(answer, refs, rows))


async def answer_all(services: Services, rows: Sequence[Pinned]) -> list[Output]:
    """All rows' answers, in order, or the failure of one, which ends the others."""
    places = Places(services.settings)

    async def answer(row: Pinned) -> Output:
        async with places.hold(len(row.members)):
            return await answer_one(services, row)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(row)) for row in rows]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def answer_fan_out(services: Services, refs: Sequence[str], given: Input, options: Options) -> list[Output]:
    """One input for many references as one group, in the order asked. Cancelling this cancels every row."""
    check_count(services, len(refs), "tasks")
    deadline = time.monotonic() + timeout_of(services.settings, options)
    pins = await pin(services.registry, refs)
    rows = [pin_or_error(services.draws, pins[ref], given, options) for ref in refs]
    group = {place: row for place, row in enumerate(rows) if isinstance(row, Pinned) and not row.is_coupled}
    others = [place for place in range(len(rows)) if place not in group]
    places = Places(services.settings)
    together, alone = await asyncio.gather(
        _answer_together(services, list(group.values()), places, deadline),
        answer_each(services, [refs[place] for place in others], [rows[place] for place in others], places),
    )
    outputs = dict(zip([*group, *others], [*together, *alone], strict=True))
    return [outputs[place] for place in range(len(rows))]


async def answer_one(services: Services, row: Pinned) -> Output:
    """One row; raises what went wrong."""
    with failures_counted(services.metrics, row), unanswered_counts(row):
        deadline = deadline_of(services.settings, row)
        asks = asks_of(row)
        timeout_s = time_left(deadline)
        if row.is_coupled:
            coupled = await services.engine.answer_coupled(asks, timeout_s=timeout_s, tenant=tenant())
            members = coupled_bodies(row, coupled.members)
            output = answered(row, coupled.answer, agreement=coupled.agreement, members=members)
            row_answered(row, output, [coupled.answer])
        elif len(asks) > 1:
            answers = await services.engine.answer_together(asks, timeout_s=timeout_s, tenant=tenant())
            output = await _settle(services, row, answers, deadline)
        else:
            (ask,) = asks
            answer = await services.engine.answer(
                ask.prompt, ask.input, decoding=ask.decoding, seed=ask.seed, timeout_s=timeout_s, tenant=tenant()
            )
            output = await _settle(services, row, [answer], deadline)
    count_row(services.metrics, row, output)
    return output


async def stream_one(services: Services, row: Pinned) -> AsyncGenerator[Output, None]:
    """One row as partial outputs; only the last has a `finish_reason`. Closing this cancels the row.

    A label, and a text that is voted on, are one event: there is nothing to show before the end.
    """
    if row.has_labels or row.mode == "vote":
        yield await answer_one(services, row)
        return
    first, pieces = True, 0
    with failures_counted(services.metrics, row), unanswered_counts(row, lambda: pieces):
        asks = asks_of(row)
        timeout_s = time_left(deadline_of(services.settings, row))
        if row.is_coupled:
            events = services.engine.stream_coupled(asks, timeout_s=timeout_s, tenant=tenant())
        else:
            (ask,) = asks
            events = services.engine.stream(
                ask.prompt, ask.input, decoding=ask.decoding, seed=ask.seed, timeout_s=timeout_s, tenant=tenant()
            )
        async with aclosing(events):
            async for event in events:
                if first:
                    count_first(services.metrics, row)
                    first = False
                output, pieces = partial(row, event), pieces + 1
                if output.finish_reason:
                    count_row(services.metrics, row, output)
                    row_answered(row, output, [event])
                yield output


def check_count(services: Services, rows: int, param: str) -> None:
    """Raises InvalidRequest for more rows than one request may have; `param` is the field that holds them."""
    if rows > services.settings.max_inputs:
        raise InvalidRequest(f"{rows} rows in one request; at most {services.settings.max_inputs}", param=param)


async def _answer_together(services: Services, rows: Sequence[Pinned], places: Places, deadline: float) -> list[Output]:
    """Rows over one input, each with its failure."""
    asked = [_asks_or_error(row) for row in rows]
    every = [ask for asks in asked if not isinstance(asks, Exception) for ask in asks]
    size = services.settings.max_rows
    with ExitStack() as counting:  # of a request that is left: what comes too late is an answer here
        for row in rows:
            counting.enter_context(unanswered_counts(row))
        found = iter(await ask_in_parts(services.engine, every, places, size=size, deadline=deadline))
    replies = [[asks] if isinstance(asks, Exception) else list(islice(found, len(asks))) for asks in asked]

    async def settle(row: Pinned, answers: Sequence[Answer | Exception]) -> Output:
        try:
            with failures_counted(services.metrics, row), unanswered_counts(row):
                output = await _settle(services, row, answers, deadline)
        except Exception as error:
            return failed(row.first.task, row, error)
        count_row(services.metrics, row, output)
        return output

    return await asyncio.gather(*(settle(row, of) for row, of in zip(rows, replies, strict=True)))


def _asks_or_error(row: Pinned) -> list[Ask] | Exception:
    try:
        return asks_of(row)
    except InvalidRequest as error:
        return error


async def _settle(services: Services, row: Pinned, answers: Sequence[Answer | Exception], deadline: float) -> Output:
    """One answer from the members' own. Raises what kept any of them from answering: members answer whole or not."""
    given = []
    for prompt, answer in zip(row.members, answers, strict=True):
        if isinstance(answer, Exception):
            raise answer
        if row.options.calibrate:
            left = deadline - time.monotonic()
            given.append(await services.calibrator.apply(prompt, answer, timeout_s=left))
        else:
            given.append(answer)
    if row.mode == "one":
        output = answered(row, given[0])
    else:
        together, agreement = vote(given) if row.mode == "vote" else mean(given)
        members = [member_body(prompt, answer) for prompt, answer in zip(row.members, given, strict=True)]
        output = answered(row, together, agreement=agreement, members=members)
    row_answered(row, output, given)
    return output
