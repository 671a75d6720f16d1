"""Scores of labels and of given answers: one forward without a cache, differentiable in the prompts.

The engine scores labels through the same layout, forward and plan, with a cache: what was trained is what is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.backbone.backbone import Backbone
from app.backbone.given import GivenPrefixes
from app.backbone.kv import PrefixKV
from app.backbone.layout import Layout, embed, lay_out, stack_prompts
from app.backbone.reference import ReferenceRunner
from app.backbone.rows import Row
from app.backbone.score_plan import plan_scores, word_branches
from app.backbone.soft_prompt import SoftPrompt, vectors_of
from app.backbone.verbalizer import Verbalizer


def score_labels(
    backbone: Backbone, rows: Sequence[Row], prompts: Sequence[SoftPrompt | None], verbalizers: Sequence[Verbalizer]
) -> list[Tensor]:
    """Log-scores of every label of every row, [K] float32 each; one forward without a cache, differentiable in the
    prompts. The same prompt may stand for several rows."""
    if backbone.probed.forward is None:
        alone = ReferenceRunner(backbone.model, slots=0, places=0)
        return [alone.score(*of) for of in zip(rows, map(vectors_of, prompts), verbalizers, strict=True)]
    branches = [word_branches(verbalizer) for verbalizer in verbalizers]
    batch = _Batch.of(backbone, rows, prompts, branches)
    plan = plan_scores(batch.layout.flat_ends, verbalizers, backbone.device)
    return plan.label_scores(batch.logits(plan.reads))


def answer_logprobs(
    backbone: Backbone, rows: Sequence[Row], prompts: Sequence[SoftPrompt | None], answers: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Log-probability of each token of each given answer, [len(answer)] float32 per row; differentiable."""
    if backbone.probed.forward is None:
        alone = ReferenceRunner(backbone.model, slots=0, places=0)
        return [alone.answer_logprobs(*of) for of in zip(rows, map(vectors_of, prompts), answers, strict=True)]
    joined = [Row((*row.ids, *answer[:-1]), row.prefix) for row, answer in zip(rows, answers, strict=True)]
    batch = _Batch.of(backbone, joined, prompts)
    ends = batch.layout.flat_ends  # of the tokens before each answer's last one
    reads = [end - len(answer) + 1 + t for end, answer in zip(ends, answers, strict=True) for t in range(len(answer))]
    targets = torch.tensor([token for answer in answers for token in answer], device=backbone.device)
    logits = batch.logits(torch.tensor(reads, device=backbone.device))
    log_probs = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return list(log_probs.split([len(answer) for answer in answers]))


@dataclass(frozen=True)
class _Batch:
    """Rows laid out, with the prompts they read: vectors at their slots, keys and values before them."""

    backbone: Backbone
    layout: Layout
    table: Tensor | None
    given: GivenPrefixes | None

    @staticmethod
    def of(
        backbone: Backbone,
        rows: Sequence[Row],
        prompts: Sequence[SoftPrompt | None],
        branches: Sequence[Sequence[Sequence[int]]] | None = None,
    ) -> _Batch:
        prefixes = [prompt if isinstance(prompt, PrefixKV) else None for prompt in prompts]
        given = GivenPrefixes(prefixes, backbone.dtype) if any(prefixes) else None
        table, offsets = stack_prompts([vectors_of(prompt) for prompt in prompts])
        layout = lay_out(
            rows,
            offsets=offsets,
            cached=given.lengths if given else None,
            branches=branches,
            base=given.width if given else None,
            device=backbone.device,
        )
        return _Batch(backbone, layout, table, given)

    def logits(self, reads: Tensor) -> Tensor:
        """[N, V] float32 at flat indices into the layout's [B, T]."""
        embeds = embed(self.layout, self.backbone.embedding, self.table)
        return self.backbone.forward.run(embeds, self.layout, reads, self.given)
