"""Scores of labels and of given answers: one forward without a cache, differentiable in the prompts.

The engine scores labels through the same layout, forward and plan, with a cache: what was trained is what is served.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from app.backbone.backbone import Backbone
from app.backbone.layout import Layout, embed, lay_out, stack_prompts
from app.backbone.reference import ReferenceRunner
from app.backbone.rows import Row
from app.backbone.score_plan import plan_scores, word_branches
from app.backbone.verbalizer import Verbalizer


def score_labels(
    backbone: Backbone, rows: Sequence[Row], prompts: Sequence[Tensor | None], verbalizers: Sequence[Verbalizer]
) -> list[Tensor]:
    """Log-scores of every label of every row, [K] float32 each; one forward without a cache, differentiable in the
    prompts. `prompts[i]` is [P, H] or None; the same tensor may stand for several rows."""
    if backbone.probed.forward is None:
        alone = ReferenceRunner(backbone.model, slots=0, places=0)
        return [alone.score(*of) for of in zip(rows, prompts, verbalizers, strict=True)]
    table, offsets = stack_prompts(prompts)
    branches = [word_branches(verbalizer) for verbalizer in verbalizers]
    layout = lay_out(rows, offsets=offsets, branches=branches, device=backbone.device)
    plan = plan_scores(layout.flat_ends, verbalizers, backbone.device)
    return plan.label_scores(_run(backbone, layout, table, plan.reads))


def answer_logprobs(
    backbone: Backbone, rows: Sequence[Row], prompts: Sequence[Tensor | None], answers: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Log-probability of each token of each given answer, [len(answer)] float32 per row; differentiable."""
    if backbone.probed.forward is None:
        alone = ReferenceRunner(backbone.model, slots=0, places=0)
        return [alone.answer_logprobs(*of) for of in zip(rows, prompts, answers, strict=True)]
    table, offsets = stack_prompts(prompts)
    joined = [Row((*row.ids, *answer[:-1]), row.prefix) for row, answer in zip(rows, answers, strict=True)]
    layout = lay_out(joined, offsets=offsets, device=backbone.device)
    reads = [
        i * layout.width + row.total - 1 + t
        for i, (row, answer) in enumerate(zip(rows, answers, strict=True))
        for t in range(len(answer))
    ]
    targets = torch.tensor([token for answer in answers for token in answer], device=backbone.device)
    logits = _run(backbone, layout, table, torch.tensor(reads, device=backbone.device))
    log_probs = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return list(log_probs.split([len(answer) for answer in answers]))


def _run(backbone: Backbone, layout: Layout, table: Tensor | None, reads: Tensor) -> Tensor:
    embeds = embed(layout, backbone.embedding, table)
    return backbone.forward.run(embeds, layout, reads)
