"""From a row as asked to a row as answered: pin the version, hand it to the engine, turn its answer into an output.

Each reference of a request is resolved once, so that all of its rows speak of the same version even while an alias
moves. A row that fails says so in its own place; its neighbours go on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

from app.api.errors import detail_of
from app.api.schemas.generate import Input, Options, Output, Request, UsageBody
from app.api.services import Services
from app.errors import ChorusError, DeadlineExceeded, Draining, InvalidRequest, RequestCancelled
from app.telemetry import request_id
from prompt_store import Decoding, StoreError

if TYPE_CHECKING:
    from app.backbone import LoadedPrompt
    from app.engine import Answer, StreamEvent, Usage

log = logging.getLogger(__name__)

Pins = Mapping[str, "LoadedPrompt | Exception"]


async def pin(services: Services, refs: Iterable[str]) -> Pins:
    """Resolve each reference once. A reference that cannot be resolved maps to its error."""
    unique = list(dict.fromkeys(refs))
    found = await asyncio.gather(*(services.registry.resolve(ref) for ref in unique), return_exceptions=True)
    for outcome in found:
        if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
            raise outcome
    return {
        ref: outcome if isinstance(outcome, Exception) else outcome.members[0]  # type: ignore[union-attr]
        for ref, outcome in zip(unique, found, strict=True)
    }


async def answer_rows(services: Services, rows: list[Request]) -> list[Output]:
    """Answer rows of any tasks together, in the order asked. Cancelling this cancels every row."""
    check_count(services, len(rows))
    pins = await pin(services, (row.task for row in rows))
    return await asyncio.gather(*(answer_or_error(services, pins[row.task], row.task, row.input, row) for row in rows))


async def answer_or_error(
    services: Services, prompt: LoadedPrompt | Exception, ref: str, given: Input, options: Options
) -> Output:
    """One row of several: its failure is part of the answer."""
    try:
        if isinstance(prompt, Exception):
            raise prompt
        return await answer_one(services, prompt, given, options)
    except Exception as error:
        return _failed(services, ref, prompt, error)


async def answer_one(services: Services, prompt: LoadedPrompt, given: Input, options: Options) -> Output:
    """One row; raises what went wrong."""
    began = time.monotonic()
    with _failures_counted(services):
        answer = await services.engine.answer(
            prompt,
            fields_of(prompt, given),
            decoding=decoding_of(prompt, options),
            seed=options.seed,
            timeout_s=timeout_of(services, options),
        )
    _count(services, prompt, answer.finish_reason, answer.usage, time.monotonic() - began)
    return _output(prompt, answer, scores=options.scores)


async def stream_one(
    services: Services, prompt: LoadedPrompt, given: Input, options: Options
) -> AsyncGenerator[Output, None]:
    """One row as partial outputs; only the last has a `finish_reason`. Closing this cancels the row."""
    if prompt.verbalizer is not None:
        yield await answer_one(services, prompt, given, options)  # a label is one event: nothing to wait in between
        return
    began, first = time.monotonic(), True
    with _failures_counted(services):
        events = services.engine.stream(
            prompt,
            fields_of(prompt, given),
            decoding=decoding_of(prompt, options),
            seed=options.seed,
            timeout_s=timeout_of(services, options),
        )
        async with aclosing(events):
            async for event in events:
                if first:
                    services.metrics.first_token_seconds.labels(prompt.task).observe(time.monotonic() - began)
                    first = False
                if event.finish_reason is not None and event.usage is not None:
                    _count(services, prompt, event.finish_reason, event.usage, time.monotonic() - began)
                yield _partial(prompt, event)


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
    asked: dict[str, Any] = {
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "stop": options.stops,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    return prompt.decoding.model_copy(update=given) if given else prompt.decoding


def timeout_of(services: Services, options: Options) -> float:
    if options.timeout_s is None:
        return services.settings.default_timeout_s
    if options.timeout_s > services.settings.max_timeout_s:
        raise InvalidRequest(f"timeout_s may be {services.settings.max_timeout_s:g} at most", param="timeout_s")
    return options.timeout_s


def check_count(services: Services, rows: int) -> None:
    if rows > services.settings.max_inputs:
        raise InvalidRequest(f"{rows} rows in one request; at most {services.settings.max_inputs}", param="inputs")


def finish_reason_of(error: BaseException) -> str:
    for kind, reason in ((DeadlineExceeded, "timeout"), (RequestCancelled, "cancelled"), (Draining, "drain")):
        if isinstance(error, kind):
            return reason
    return "error"


def usage_body(usage: Usage) -> UsageBody:
    return UsageBody(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        virtual_tokens=usage.virtual_tokens,
    )


def total_usage(outputs: list[Output]) -> UsageBody:
    return sum((output.usage for output in outputs if output.usage is not None), start=UsageBody())


def _output(prompt: LoadedPrompt, answer: Answer, *, scores: bool) -> Output:
    return Output(
        task=prompt.task,
        version=prompt.version,
        digest=prompt.digest,
        text=answer.text,
        label=answer.label,
        scores=answer.scores if scores else None,
        finish_reason=answer.finish_reason,
        usage=usage_body(answer.usage),
        members=None,
    )


def _partial(prompt: LoadedPrompt, event: StreamEvent) -> Output:
    return Output(
        task=prompt.task,
        version=prompt.version,
        digest=prompt.digest,
        text=event.text,
        finish_reason=event.finish_reason or "",
        usage=None if event.usage is None else usage_body(event.usage),
        members=None,
    )


def _failed(services: Services, ref: str, prompt: LoadedPrompt | Exception, error: Exception) -> Output:
    detail = detail_of(error, request_id.get())
    if not isinstance(error, (ChorusError, StoreError)) or detail.type == "server_error":
        log.error("row failed", exc_info=error)
    pinned = {} if isinstance(prompt, Exception) else {"version": prompt.version, "digest": prompt.digest}
    task = ref if isinstance(prompt, Exception) else prompt.task
    return Output(task=task, finish_reason=finish_reason_of(error), members=None, error=detail, **pinned)  # type: ignore[arg-type]


@contextmanager
def _failures_counted(services: Services) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        services.metrics.row_failures.labels(detail_of(error, None).code).inc()
        raise


def _count(services: Services, prompt: LoadedPrompt, reason: str, usage: Usage, seconds: float) -> None:
    metrics = services.metrics
    metrics.rows.labels(prompt.task, reason).inc()
    metrics.row_seconds.labels(prompt.task).observe(seconds)
    metrics.prompt_tokens.labels(prompt.task).inc(usage.prompt_tokens)
    metrics.virtual_tokens.labels(prompt.task).inc(usage.virtual_tokens)
    metrics.generation_tokens.labels(prompt.task).inc(usage.completion_tokens)
