"""What is learned and how it is judged, over the functions that serve: label scores, or the answer's tokens.

A label task minimises the cross-entropy over its labels' log-scores, which is the very score the service ranks by.
Free text minimises the mean negative log-probability of the answer's tokens, end token included, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from app.backbone import Backbone, SoftPrompt, Verbalizer, answer_logprobs, generate_greedy, score_labels
from app.backbone.soft_prompt import decoder_tokens
from app.training.examples import Encoded

MAX_EVAL_TOKENS = 8192
"""Tokens of one evaluation batch, padding included."""


def summed_loss(verbalizer: Verbalizer | None, scores: Sequence[Tensor], rows: Sequence[Encoded]) -> Tensor:
    """Cross-entropy over the labels' scores, or negative log-probability of the answers' tokens, summed."""
    if verbalizer is None:
        return -torch.cat(list(scores)).sum()
    table = torch.stack(list(scores))  # [B, K]
    labels = torch.tensor([one.label for one in rows], device=table.device)
    return F.cross_entropy(table, labels, reduction="sum")


def count_terms(rows: Sequence[Encoded]) -> int:
    """What a mean loss is a mean over: rows of a label task, answer tokens of free text."""
    return sum(len(one.answer) or 1 for one in rows)


@torch.no_grad()
def label_scores(
    backbone: Backbone, verbalizer: Verbalizer, prompt: SoftPrompt | None, examples: Sequence[Encoded]
) -> Tensor:
    """Log-scores of every label, [N, K] float32 on the CPU, in the examples' order."""
    scores = torch.empty(len(examples), len(verbalizer.labels))
    for places in eval_batches(examples):
        rows = [examples[place].row for place in places]
        found = score_labels(backbone, rows, [prompt] * len(rows), [verbalizer] * len(rows))
        scores[places] = torch.stack(found).float().cpu()
    return scores


@torch.no_grad()
def answer_losses(backbone: Backbone, prompt: SoftPrompt | None, examples: Sequence[Encoded]) -> tuple[float, int]:
    """(summed negative log-probability, number of answer tokens)."""
    total, count = 0.0, 0
    for places in eval_batches(examples):
        batch = [examples[place] for place in places]
        scores = answer_logprobs(backbone, [one.row for one in batch], [prompt] * len(batch), [o.answer for o in batch])
        total, count = total + float(summed_loss(None, scores, batch)), count + count_terms(batch)
    return total, count


def answers(
    backbone: Backbone, prompt: SoftPrompt | None, examples: Sequence[Encoded], *, max_tokens: int
) -> list[str]:
    """The text the service would answer with, greedily, for each example in order; it ends where the context does."""
    texts = [""] * len(examples)
    context = backbone.max_positions - decoder_tokens(prompt)
    for places in eval_batches(examples, extra=max_tokens):
        rows = [examples[place].row for place in places]
        rooms = [max(1, min(max_tokens, context - row.total)) for row in rows]
        found = generate_greedy(backbone, rows, [prompt] * len(rows), max_tokens=rooms)
        for place, generated in zip(places, found, strict=True):
            texts[place] = backbone.tokenizer.decode(generated.tokens)
    return texts


def eval_batches(examples: Sequence[Encoded], *, extra: int = 0) -> list[list[int]]:
    """Places of the examples, sorted by length and cut so that a batch stays within MAX_EVAL_TOKENS."""
    batches: list[list[int]] = []
    for place in sorted(range(len(examples)), key=lambda place: examples[place].length):
        width = examples[place].length + extra
        if batches and (len(batches[-1]) + 1) * width <= MAX_EVAL_TOKENS:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches
