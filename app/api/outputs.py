"""What a row's answer looks like to its caller, and how it is counted: once, however many versions answer it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from app.api.auth.account import count_answer
from app.api.errors import detail_of
from app.api.pinning import Pinned
from app.api.schemas.generate import MemberBody, Output, UsageBody
from app.api.spans import row_failed
from app.engine import Answer, StreamEvent, Usage
from app.errors import ChorusError, DeadlineExceeded, Draining, RequestCancelled
from app.telemetry import Metrics, request_id
from prompt_store import StoreError

if TYPE_CHECKING:
    from app.backbone import LoadedPrompt

log = logging.getLogger(__name__)


def answered(
    row: Pinned, answer: Answer, *, agreement: float | None = None, members: list[MemberBody] | None = None
) -> Output:
    """A whole answer. A label under the task's `abstain_below` is left out."""
    least = row.task.spec.abstain_below
    abstained = None
    if least is not None and answer.label is not None and answer.scores is not None:
        abstained = answer.scores[answer.label] < least
    return Output(
        task=row.first.task,
        version=row.first.version,
        digest=row.first.digest,
        text="" if abstained else answer.text,
        label=None if abstained else answer.label,
        scores=answer.scores if row.options.scores else None,
        abstained=abstained,
        agreement=agreement,
        finish_reason=answer.finish_reason,
        usage=usage_body(answer.usage),
        members=members if row.options.members else None,
    )


def partial(row: Pinned, event: StreamEvent) -> Output:
    """A piece of a stream; the last says what members that wrote it together think of it."""
    return Output(
        task=row.first.task,
        version=row.first.version,
        digest=row.first.digest,
        text=event.text,
        agreement=event.agreement,
        finish_reason=event.finish_reason or "",
        usage=None if event.usage is None else usage_body(event.usage),
        members=coupled_bodies(row, event.members) if event.members is not None and row.options.members else None,
    )


def failed(ref: str, row: Pinned | Exception, error: Exception) -> Output:
    """A row that failed, in its own place. `row` is an error where not even its versions are known."""
    detail = detail_of(error, request_id.get())
    if not isinstance(error, (ChorusError, StoreError)) or detail.type == "server_error":
        log.error("row failed", exc_info=error)
    reason = finish_reason_of(error)
    if isinstance(row, Exception):
        return Output(task=ref, finish_reason=reason, error=detail)
    first = row.first
    return Output(task=first.task, version=first.version, digest=first.digest, finish_reason=reason, error=detail)


def member_body(prompt: LoadedPrompt, answer: Answer) -> MemberBody:
    """One member's own view."""
    return MemberBody(
        version=prompt.version,
        digest=prompt.digest,
        text=answer.text,
        label=answer.label,
        scores=answer.scores,
        usage=usage_body(answer.usage),
    )


def coupled_bodies(row: Pinned, logprobs: Sequence[float]) -> list[MemberBody]:
    """Members that wrote one text: each with the log-probability that it alone gives that text."""
    return [
        MemberBody(version=prompt.version, digest=prompt.digest, logprob=logprob)
        for prompt, logprob in zip(row.members, logprobs, strict=True)
    ]


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


def total_usage(outputs: Sequence[Output]) -> UsageBody:
    return sum((output.usage for output in outputs if output.usage is not None), start=UsageBody())


def count_first(metrics: Metrics, row: Pinned) -> None:
    """The first event of a stream."""
    metrics.first_token_seconds.labels(metrics.task_label(row.first.task)).observe(time.monotonic() - row.arrived)


def count_row(metrics: Metrics, row: Pinned, output: Output) -> None:
    """One answered row, with its usage."""
    assert output.usage is not None
    count_answer(f"{output.task}@{output.version}", output.usage.total_tokens)
    task = metrics.task_label(row.first.task)
    metrics.rows.labels(task, output.finish_reason).inc()
    metrics.row_seconds.labels(task).observe(time.monotonic() - row.arrived)
    metrics.prompt_tokens.labels(task).inc(output.usage.prompt_tokens)
    metrics.virtual_tokens.labels(task).inc(output.usage.virtual_tokens)
    metrics.generation_tokens.labels(task).inc(output.usage.completion_tokens)
    if output.abstained:
        metrics.abstained.labels(task).inc()


@contextmanager
def failures_counted(metrics: Metrics, row: Pinned) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        metrics.row_failures.labels(detail_of(error, None).code).inc()
        row_failed(row, error)
        raise
