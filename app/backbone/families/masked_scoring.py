"""Label scores of a masked model: each word is read at as many masks as it has tokens, all seen at once.

A row holds one mask. For words of n tokens it is run with n masks at that place; a word's score is the sum of its
tokens' log-probabilities there (Schick and Schütze 2021, arXiv 2001.07676, section 3, without the autoregressive
re-filling of 2009.07118), a label's the log-sum-exp over its words. Words of equal length share a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.backbone.families.masked_forward import MaskedForward
from app.backbone.rows import Row
from app.backbone.score_plan import ScorePlan
from app.backbone.soft_prompt import SoftPrompt
from app.backbone.verbalizer import Verbalizer
from app.errors import CapabilityMissing, InvalidPrompt, InvalidTemplate

NO_TEXT = "a masked backbone scores labels; it does not generate"
NO_KEYS = "a masked backbone reads vectors at its template's slots; it takes no keys and values"


@dataclass(frozen=True)
class MaskedBatch:
    """`logits` [n, V] at each row's first mask, or at its last token where it has none; `scores` [K] of the rows that
    have a verbalizer. `tokens` were read, `padding` only filled up."""

    logits: Tensor
    scores: list[Tensor | None]
    tokens: int
    padding: int


def score_labels(
    forward: MaskedForward,
    rows: Sequence[Row],
    prompts: Sequence[SoftPrompt | None],
    verbalizers: Sequence[Verbalizer | Sequence[int]],
) -> list[Tensor]:
    """Log-scores of every label of every row, [K] float32 each; differentiable in the prompts.

    Raises CapabilityMissing for answers that are no labels, InvalidPrompt for prompts of keys and values.
    """
    asked = []
    for verbalizer in verbalizers:
        if not isinstance(verbalizer, Verbalizer):
            raise CapabilityMissing(NO_TEXT)
        asked.append(verbalizer)
    found = run(forward, rows, [masked_vectors(prompt) for prompt in prompts], asked)
    return [scores for scores in found.scores if scores is not None]


def masked_vectors(prompt: SoftPrompt | None) -> Tensor | None:
    """[P, H], or None for a hand-written prompt. Raises InvalidPrompt for any other form."""
    if prompt is not None and not isinstance(prompt, Tensor):
        raise InvalidPrompt(NO_KEYS)
    return prompt


def run(
    forward: MaskedForward,
    rows: Sequence[Row],
    prompts: Sequence[Tensor | None],
    verbalizers: Sequence[Verbalizer | None],
) -> MaskedBatch:
    """All rows, each once for every length of its words, in one forward. Raises InvalidTemplate for rows with a
    verbalizer and no mask."""
    runs: list[Row] = []
    owners: list[int] = []
    reads: list[list[int]] = []
    firsts: list[dict[int, int]] = []  # of each row: number of masks -> index of the first of them among all reads
    count = 0
    for i, (row, verbalizer) in enumerate(zip(rows, verbalizers, strict=True)):
        firsts.append({})
        place = row.ids.index(forward.mask_id) if forward.mask_id in row.ids else None
        if verbalizer is not None and place is None:
            raise InvalidTemplate("the row holds no mask, which is where its labels would be read", param="template")
        lengths = [1] if verbalizer is None else sorted({len(word) for _, word in verbalizer.flat})
        for length in lengths:
            at = len(row.ids) - 1 if place is None else place
            runs.append(row if length == 1 else _with_masks(row, at, length, forward.mask_id))
            owners.append(i)
            reads.append(list(range(at, at + length)))
            firsts[i][length] = count
            count += length
    logits, padding = forward.logits(runs, [prompts[i] for i in owners], reads)
    plan = _plan(firsts, verbalizers, logits.device)
    scored = iter(plan.label_scores(logits))
    return MaskedBatch(
        logits=logits[plan.trunks],
        scores=[None if verbalizer is None else next(scored) for verbalizer in verbalizers],
        tokens=sum(row.total for row in runs),
        padding=padding,
    )


def _with_masks(row: Row, place: int, count: int, mask: int) -> Row:
    return Row((*row.ids[:place], *[mask] * count, *row.ids[place + 1 :]))


def _plan(
    firsts: Sequence[dict[int, int]], verbalizers: Sequence[Verbalizer | None], device: torch.device
) -> ScorePlan:
    """How the logits at the masks add up to words and labels."""
    pick: list[int] = []
    tokens: list[int] = []
    words: list[int] = []
    labels: list[int] = []
    base = 0
    for first, verbalizer in zip(firsts, verbalizers, strict=True):
        if verbalizer is None:
            continue
        for label, word in verbalizer.flat:
            pick += range(first[len(word)], first[len(word)] + len(word))
            tokens += word
            words += [len(labels)] * len(word)
            labels.append(base + label)
        base += len(verbalizer.labels)

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    sizes = tuple(len(v.labels) for v in verbalizers if v is not None)
    trunks = tensor([min(first.values()) for first in firsts])
    return ScorePlan(tensor([]), tensor(pick), tensor(tokens), tensor(words), tensor(labels), trunks, sizes)
