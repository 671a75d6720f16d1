"""What a trace tells of a row: which version answered, how long it waited, was read and written, and what it cost.

Names are those of OpenTelemetry's conventions for generative AI where they have one. Texts, labels and stop strings are
users' words and never told. Spans are made once a row has ended, from the times that the engine gives with its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.api.schemas.generate import Output
from app.engine import Answer, StreamEvent
from app.engine.answers import Timing
from app.telemetry.tracing import NOTHING, Span, code_of, current_span

if TYPE_CHECKING:
    from app.api.pinning import Pinned

OPERATION = "text_completion"
NUMBERS = ("max_tokens", "temperature", "top_p", "top_k", "seed")
"""Options that are told under `gen_ai.request.` when a request gives them."""


def row_answered(row: Pinned, output: Output, answers: Sequence[Answer | StreamEvent]) -> None:
    """One row and, for each member that ran for it, its turns in the engine."""
    span = _row(row)
    if not span.recording:
        return
    usage = output.usage
    assert usage is not None
    span.set(
        {
            "gen_ai.response.finish_reasons": (output.finish_reason,),
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "chorus.usage.virtual_tokens": usage.virtual_tokens,
        }
    )
    for answer in answers:
        if answer.timing is not None:
            _turns(span, answer.timing)
    span.end()


def row_failed(row: Pinned, error: BaseException) -> None:
    span = _row(row)
    span.fail(code_of(error))
    span.end()


def _row(row: Pinned) -> Span:
    within = current_span()
    if not within.recording:
        return NOTHING
    first, options = row.first, row.options
    given = {name: getattr(options, name) for name in NUMBERS}
    return within.child(
        f"{OPERATION} {first.task}",
        {
            "gen_ai.operation.name": OPERATION,
            "gen_ai.provider.name": "chorus",
            "gen_ai.request.model": first.task,
            "gen_ai.response.model": f"{first.task}@{first.version}",
            "chorus.versions": row.fingerprints,
            "chorus.mode": row.mode,
            **{f"gen_ai.request.{name}": value for name, value in given.items() if value is not None},
        },
        began=row.arrived,
    )


def _turns(span: Span, timing: Timing) -> None:
    """In the queue, in the prefill, and token by token; a label has its scores with the prefill."""
    for name, began, ended in (
        ("queue", timing.arrived, timing.began),
        ("prefill", timing.began, timing.first),
        ("decode", timing.first, timing.ended),
    ):
        if name != "decode" or ended > began:
            span.child(name, began=began).end(ended)
