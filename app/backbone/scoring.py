"""Scores of labels and of given answers: one forward that keeps no cache, differentiable in the prompts.

The engine scores labels through the same layout, forward and plan, with a cache: what was trained is what is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.backbone.backbone import Backbone
from app.backbone.families import masked_scoring, seq2seq_scoring
from app.backbone.families.seq2seq_reference import Seq2SeqReference
from app.backbone.given import GivenPrefixes
from app.backbone.kv import PrefixKV
from app.backbone.layout import Layout, embed, lay_out, stack_prompts
from app.backbone.reference import ReferenceRunner
from app.backbone.rows import Row
from app.backbone.score_plan import plan_scores, word_branches
from app.backbone.shared_prefix import SharedPrefixes, share_prefixes
from app.backbone.soft_prompt import SoftPrompt, vectors_of
from app.backbone.verbalizer import Verbalizer
from app.errors import InvalidRequest

Asked = Verbalizer | Sequence[int]
"""What is wanted of a row: the scores of a verbalizer's labels, or the log-probabilities of an answer's tokens."""


def score_labels(
    backbone: Backbone, rows: Sequence[Row], prompts: Sequence[SoftPrompt | None], verbalizers: Sequence[Verbalizer]
) -> list[Tensor]:
    """Log-scores of every label of every row, [K] float32 each; one forward without a cache, differentiable in the
    prompts. The same prompt may stand for several rows."""
    return score_rows(backbone, rows, prompts, verbalizers)


def answer_logprobs(
    backbone: Backbone, rows: Sequence[Row], prompts: Sequence[SoftPrompt | None], answers: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Log-probability of each token of each given answer, [len(answer)] float32 per row; differentiable."""
    return score_rows(backbone, rows, prompts, answers)


def score_rows(
    backbone: Backbone,
    rows: Sequence[Row],
    prompts: Sequence[SoftPrompt | None],
    asked: Sequence[Asked],
    *,
    shared: SharedPrefixes | None = None,
) -> list[Tensor]:
    """What each row is asked for, in one forward over all of them, float32 and differentiable in the prompts: [K] for
    the labels of a verbalizer, [len(answer)] for an answer.

    `shared` is what rows begin with, where the caller has computed it; without it, it is computed here.

    Raises InvalidRequest for a row that holds nothing but its prompt's keys and values: nothing is computed for it.
    """
    if backbone.probed.masked is not None:
        return masked_scoring.score_labels(backbone.probed.masked, rows, prompts, asked)
    if backbone.family == "seq2seq":
        return _score_seq2seq(backbone, rows, prompts, asked)
    if backbone.probed.forward is None:
        alone = ReferenceRunner(backbone.model, slots=0, places=0)
        return [_score_alone(alone, *of) for of in zip(rows, map(vectors_of, prompts), asked, strict=True)]
    for row, prompt in zip(rows, prompts, strict=True):
        if isinstance(prompt, PrefixKV) and row.total <= prompt.length:
            raise InvalidRequest("there is not one token to read behind the prompt's keys and values", param="input")
    shared = share_prefixes(backbone, rows, prompts) if shared is None else shared
    given = [
        prompt if isinstance(prompt, PrefixKV) else shared.of(row, prompt)
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    told = [row if isinstance(of, Verbalizer) else _with_answer(row, of) for row, of in zip(rows, asked, strict=True)]
    branches = [word_branches(of) if isinstance(of, Verbalizer) else () for of in asked]
    batch = _Batch.of(backbone, told, prompts, given, branches)
    return batch.scores(asked)


def _score_seq2seq(
    backbone: Backbone, rows: Sequence[Row], prompts: Sequence[SoftPrompt | None], asked: Sequence[Asked]
) -> list[Tensor]:
    if backbone.probed.seq2seq is not None:
        return seq2seq_scoring.score_rows(backbone.probed.seq2seq, rows, prompts, asked)
    alone = Seq2SeqReference(backbone.model, backbone.decoder_start, slots=0, places=0)
    return [
        alone.score(row, prompt, of) if isinstance(of, Verbalizer) else alone.answer_logprobs(row, prompt, of)
        for row, prompt, of in zip(rows, prompts, asked, strict=True)
    ]


def _score_alone(runner: ReferenceRunner, row: Row, vectors: Tensor | None, asked: Asked) -> Tensor:
    if isinstance(asked, Verbalizer):
        return runner.score(row, vectors, asked)
    return runner.answer_logprobs(row, vectors, asked)


def _with_answer(row: Row, answer: Sequence[int]) -> Row:
    """The tokens that predict the answer's: its last one predicts nothing that is wanted."""
    return Row((*row.ids, *answer[:-1]), row.prefix)


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
        prefixes: Sequence[PrefixKV | None],
        branches: Sequence[Sequence[Sequence[int]]],
    ) -> _Batch:
        given = GivenPrefixes(prefixes, backbone.dtype) if any(prefixes) else None
        cached = given.lengths if given else [0] * len(rows)
        left = [any(index < 0 for index in row.ids[skip:]) for row, skip in zip(rows, cached, strict=True)]
        table, offsets = stack_prompts([vectors_of(p) if some else None for p, some in zip(prompts, left, strict=True)])
        layout = lay_out(
            rows,
            offsets=offsets,
            cached=cached,
            branches=branches,
            base=given.width if given else None,
            device=backbone.device,
        )
        return _Batch(backbone, layout, table, given)

    def scores(self, asked: Sequence[Asked]) -> list[Tensor]:
        ends = self.layout.flat_ends
        labelled = [i for i, of in enumerate(asked) if isinstance(of, Verbalizer)]
        plan = plan_scores(
            [ends[i] for i in labelled],
            [of for of in asked if isinstance(of, Verbalizer)],
            self.backbone.device,
        )
        answers = {i: of for i, of in enumerate(asked) if not isinstance(of, Verbalizer)}
        places = [ends[i] - len(of) + 1 + t for i, of in answers.items() for t in range(len(of))]
        reads, pick, tokens = plan.reads, plan.pick, plan.tokens
        if places:
            more = torch.tensor(
                [places, range(len(reads), len(reads) + len(places)), [t for of in answers.values() for t in of]],
                device=reads.device,
            )
            reads, pick, tokens = (torch.cat(pair) for pair in zip((reads, pick, tokens), more, strict=True))
        log_probs = self._log_probs(reads, pick, tokens)
        of_labels, of_answers = log_probs.split([len(plan.pick), len(places)])
        found = dict(zip(labelled, plan.add_up(of_labels), strict=True))
        found |= zip(answers, of_answers.split([len(of) for of in answers.values()]), strict=True)
        return [found[i] for i in range(len(asked))]

    def _log_probs(self, reads: Tensor, pick: Tensor, tokens: Tensor) -> Tensor:
        embeds = embed(self.layout, self.backbone.embedding, self.table)
        return self.backbone.forward.log_probs(embeds, self.layout, reads, pick, tokens, self.given)
