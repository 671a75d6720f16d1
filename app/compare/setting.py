"""One task on one model: how its rows are encoded, judged on dev rows, and answered on test rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from app.backbone import Backbone, SoftPrompt, Template, compile_verbalizer, default_bos
from app.compare.tasks import TaskRows
from app.training.evaluate import Evaluator
from app.training.examples import Encoded, Encoder
from app.training.objective import answers, label_scores
from app.training.runs import Judgement
from prompt_store.models import Metric

CONTEXT = 1024
"""Longest row, answer included; longer inputs are cut, for every contestant alike."""

Load = Callable[[], Backbone]
"""Gives a copy of the model that is the caller's own, float32 where it is to be trained."""


@dataclass(frozen=True)
class Setting:
    """`backbone` is the shared frozen model, or a contestant's own copy of it."""

    task: TaskRows
    backbone: Backbone
    seed: int = 0

    @cached_property
    def encoder(self) -> Encoder:
        """With the template's slots."""
        tokenizer, words = self.backbone.tokenizer, self.task.words
        return Encoder(
            tokenizer,
            self.task.template,
            default_bos(tokenizer),
            None if words is None else compile_verbalizer(tokenizer, words),
            min(CONTEXT, self.backbone.max_positions),
        )

    def dressed(self, template: Template) -> Encoder:
        return replace(self.encoder, template=template)

    @cached_property
    def bare(self) -> Encoder:
        """The same words without slots: what everything reads that has no soft prompt."""
        return self.dressed(self.task.template.without_slots())

    @property
    def choosing(self) -> Metric:
        """What dev rows choose by: the score of a label task, the loss of free text, which generates nothing."""
        return self.task.metric if self.task.labels is not None else "loss"

    @cached_property
    def max_tokens(self) -> int:
        """Most tokens of a generated answer, as in training."""
        encode = self.backbone.tokenizer.encode_text
        longest = max((len(encode(e.output)) for e in self.task.train[:2000] if e.output), default=0)
        return min(256, max(8, longest * 5 // 4))

    def evaluator(self, encoder: Encoder) -> Evaluator:
        return Evaluator(self.backbone, encoder, self.choosing, self.max_tokens, self.seed)

    def judge(self, encoder: Encoder) -> Callable[[SoftPrompt | None], Judgement]:
        """A prompt's judgement on the dev rows."""
        return self.evaluator(encoder).quick_judge(self.task.dev)

    def probabilities(self, prompt: SoftPrompt | None, encoder: Encoder) -> Tensor:
        """Of every label for every test row, [N, K] float32."""
        assert encoder.verbalizer is not None
        return label_scores(self.backbone, encoder.verbalizer, prompt, self.encoded(encoder)).softmax(1)

    def answer(self, prompt: SoftPrompt | None, encoder: Encoder) -> list[str]:
        """The label or the text given to each test row."""
        if encoder.verbalizer is not None:
            return named(encoder.verbalizer.labels, self.probabilities(prompt, encoder))
        with torch.no_grad():
            return answers(self.backbone, prompt, self.encoded(encoder), max_tokens=self.max_tokens)

    def encoded(self, encoder: Encoder) -> list[Encoded]:
        return [encoder.encode(example) for example in self.task.test]


def named(labels: Sequence[str], probabilities: Tensor) -> list[str]:
    """The most probable label of each row of [N, K]."""
    return [labels[place] for place in probabilities.argmax(1).tolist()]
