"""Greedy answers without a scheduler, for evaluation and golden outputs. The engine serves; this is not it, but it
runs on the same runner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.backbone.backbone import Backbone
from app.backbone.families.masked_scoring import NO_TEXT
from app.backbone.rows import Row
from app.backbone.runner import greedy_token, prefill_item
from app.backbone.soft_prompt import SoftPrompt, decoder_tokens
from app.errors import CapabilityMissing


@dataclass(frozen=True)
class Generated:
    """`tokens` without the end token; `margins` the gap between best and second logit at each of them."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]


@torch.no_grad()
def next_logits(backbone: Backbone, rows: Sequence[Row], prompts: Sequence[SoftPrompt | None] | None = None) -> Tensor:
    """Logits [B, V] of what follows each row; of a masked backbone, of what stands at its mask."""
    of = prompts if prompts is not None else [None] * len(rows)
    runner = backbone.runner(slots=len(rows), places=max(row.total for row in rows) + 1)
    return runner.prefill(0, [prefill_item(row, prompt) for row, prompt in zip(rows, of, strict=True)]).logits


@torch.no_grad()
def generate_greedy(
    backbone: Backbone, rows: Sequence[Row], prompts: Sequence[SoftPrompt | None], *, max_tokens: int | Sequence[int]
) -> list[Generated]:
    """The most likely continuation of each row, up to the end token or `max_tokens`, of all rows or of each.

    Raises CapabilityMissing for a masked backbone.
    """
    if backbone.family == "masked":
        raise CapabilityMissing(NO_TEXT)
    rows = [replace(row, decoder=decoder_tokens(prompt)) for row, prompt in zip(rows, prompts, strict=True)]
    ends = set(backbone.tokenizer.eos_ids)
    most = [max_tokens] * len(rows) if isinstance(max_tokens, int) else max_tokens
    runner = backbone.runner(slots=len(rows), places=max(row.total + n for row, n in zip(rows, most, strict=True)))
    logits = runner.prefill(0, [prefill_item(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]).logits
    lengths = [row.total for row in rows]
    taken: list[list[tuple[int, float]]] = [[] for _ in rows]
    done = [False] * len(rows)
    for _ in range(max(most)):
        tokens, margins = greedy_token(logits)
        for i, (token, margin) in enumerate(zip(tokens.tolist(), margins.tolist(), strict=True)):
            done[i] = done[i] or token in ends
            if not done[i]:
                taken[i].append((token, margin))
                done[i] = len(taken[i]) == most[i]
        if all(done):
            break
        logits = runner.decode(tokens, torch.tensor(lengths, device=backbone.device), max(lengths))
        lengths = [length + (not ended) for length, ended in zip(lengths, done, strict=True)]  # no row outgrows its own
    return [Generated(tuple(t for t, _ in row), tuple(m for _, m in row)) for row in taken]
