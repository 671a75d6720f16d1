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
    backbone: Backbone, rows: Sequence[Row], prompts: Sequence[SoftPrompt | None], *, max_tokens: int
) -> list[Generated]:
    """The most likely continuation of each row, up to the end token or `max_tokens`.

    Raises CapabilityMissing for a masked backbone.
    """
    if backbone.family == "masked":
        raise CapabilityMissing(NO_TEXT)
    rows = [replace(row, decoder=decoder_tokens(prompt)) for row, prompt in zip(rows, prompts, strict=True)]
    ends = set(backbone.tokenizer.eos_ids)
    longest = max(row.total for row in rows)
    runner = backbone.runner(slots=len(rows), places=longest + max_tokens)
    logits = runner.prefill(0, [prefill_item(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]).logits
    lengths = torch.tensor([row.total for row in rows], device=backbone.device)
    taken: list[list[tuple[int, float]]] = [[] for _ in rows]
    done = [False] * len(rows)
    for step in range(max_tokens):
        tokens, margins = greedy_token(logits)
        for i, (token, margin) in enumerate(zip(tokens.tolist(), margins.tolist(), strict=True)):
            done[i] = done[i] or token in ends
            if not done[i]:
                taken[i].append((token, margin))
        if all(done) or step == max_tokens - 1:
            break
        logits = runner.decode(tokens, lengths, longest + step)
        lengths = lengths + 1
    return [Generated(tuple(t for t, _ in row), tuple(m for _, m in row)) for row in taken]
