"""What the engine is asked for a row: its fields, decoding and deadline, once for each version that answers it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from app.api.pinning import Pinned
from app.api.schemas.generate import Input, Options
from app.engine import Answer, Ask
from app.errors import InvalidRequest
from app.settings import Settings
from prompt_store import Decoding

if TYPE_CHECKING:
    from app.backbone import LoadedPrompt
    from app.engine import EngineService


def asks_of(row: Pinned) -> list[Ask]:
    """One ask for each member. Raises InvalidRequest for an input that the task does not take."""
    return [
        Ask(prompt, fields_of(prompt, row.given), decoding_of(prompt, row.options), row.options.seed)
        for prompt in row.members
    ]


async def ask_in_parts(
    engine: EngineService, asks: Sequence[Ask], *, size: int, timeout_s: float
) -> list[Answer | Exception]:
    """Groups of at most `size` rows, as many as may run at once, all on their way together. The failure of a group
    stands in the place of each of its rows."""
    parts = [asks[at : at + size] for at in range(0, len(asks), size)]
    found = await asyncio.gather(
        *(engine.answer_together(part, timeout_s=timeout_s) for part in parts), return_exceptions=True
    )
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


def timeout_of(settings: Settings, options: Options) -> float:
    """Seconds. Raises InvalidRequest beyond the longest that may be asked for."""
    if options.timeout_s is None:
        return settings.default_timeout_s
    if options.timeout_s > settings.max_timeout_s:
        raise InvalidRequest(f"timeout_s may be {settings.max_timeout_s:g} at most", param="timeout_s")
    return options.timeout_s
