"""Replay of golden outputs: a replica serves a version only if it answers as the version's trainer did."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import torch

from app.backbone import Golden, LoadedPrompt
from app.engine.answers import Answer
from app.errors import VersionUnavailable

# Largest difference of a log-score, and the margin below which a greedy token may differ, by serving dtype.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.1}

Ask = Callable[[LoadedPrompt, Mapping[str, str], int], Awaitable[Answer]]


async def check_golden(prompt: LoadedPrompt, ask: Ask, *, dtype: torch.dtype) -> None:
    """Ask every golden input, all in one batch, and compare.

    Raises:
        VersionUnavailable: an answer differs by more than the dtype's tolerance.
    """
    tolerance = TOLERANCE[dtype]
    answers = await asyncio.gather(*(ask(prompt, golden.input, _length(golden)) for golden in prompt.golden))
    for number, (golden, answer) in enumerate(zip(prompt.golden, answers, strict=True), start=1):
        fault = _score_fault(golden, answer, tolerance) or _token_fault(golden, answer, tolerance)
        if fault:
            raise VersionUnavailable(
                f"{prompt.task}@{prompt.version}: golden output {number} does not hold here: {fault}"
            )


def _length(golden: Golden) -> int:
    return max(1, len(golden.tokens or ()))


def _score_fault(golden: Golden, answer: Answer, tolerance: float) -> str | None:
    if golden.scores is None:
        return None
    if answer.log_scores is None or set(answer.log_scores) != set(golden.scores):
        return "the labels differ"
    worst = max(abs(answer.log_scores[label] - score) for label, score in golden.scores.items())
    return None if worst <= tolerance else f"a log-score differs by {worst:.3g}, more than {tolerance}"


def _token_fault(golden: Golden, answer: Answer, tolerance: float) -> str | None:
    """Tokens are compared up to the first place where the trainer's own choice was a close call."""
    if golden.tokens is None:
        return None
    margins = golden.margins or (float("inf"),) * len(golden.tokens)
    for place, (wanted, margin) in enumerate(zip(golden.tokens, margins, strict=True)):
        if margin <= tolerance:
            return None
        got = answer.token_ids[place] if place < len(answer.token_ids) else None
        if got != wanted:
            return f"token {place + 1} is {got}, not {wanted}"
    return None
