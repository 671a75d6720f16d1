"""How good a prompt is on held-out rows, next to what it must beat: the most common answer, and the same words without
learned vectors. Scores come from the functions that serve; nothing here trains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from app.backbone import Backbone, LoadedPrompt, SoftPrompt, Verbalizer
from app.backbone.calibration import (
    Floats,
    calibrate,
    content_free_inputs,
    content_free_prior,
    expected_calibration_error,
)
from app.backbone.kv import PrefixKV
from app.backbone.soft_prompt import place
from app.training.data import Example
from app.training.examples import Encoded, Encoder, sample_rows
from app.training.metrics import accuracy, bootstrap, exact_match, macro_f1, rouge_l, wilson
from app.training.objective import answer_losses, answers, label_scores
from app.training.servable import refusal_of
from app.training.trainer import Judgement
from prompt_store.models import Calibration, Metric

QUICK_ROWS, QUICK_TEXTS = 300, 32
"""Most dev rows of one evaluation while training: label tasks, and free text that must be generated."""

FINAL_ROWS, FINAL_TEXTS = 2000, 200
"""The same for the evaluation that goes on the card."""

Statistic = Callable[[npt.NDArray[np.int64]], float]


@dataclass(frozen=True)
class Measured:
    """A metric over n rows with its 95 % interval, and what label probabilities are worth on those rows. `statistic` is
    the metric over any of the rows, by their places: what a bootstrap resamples."""

    metric: Metric
    score: float
    n: int
    interval: tuple[float, float]
    loss: float
    statistic: Statistic = field(repr=False, compare=False)
    calibration: Calibration | None = None

    @property
    def rank(self) -> float:
        return -self.score if self.metric == "loss" else self.score


@dataclass(frozen=True)
class _Judged:
    """`calibration` costs more than the score, so it waits to be asked for; `share` tells a share of rows, whose
    interval is Wilson's, from other metrics, whose interval is a bootstrap's."""

    score: float
    loss: float
    n: int
    statistic: Statistic
    share: bool = False
    calibration: Callable[[], Calibration | None] = lambda: None

    def interval(self) -> tuple[float, float]:
        return wilson(self.score, self.n) if self.share else bootstrap(self.n, self.statistic)


@dataclass(frozen=True)
class Evaluator:
    """Judges prompts of one task by its metric. `max_tokens` bounds generated answers."""

    backbone: Backbone
    encoder: Encoder
    metric: Metric
    max_tokens: int
    seed: int

    def quick_judge(self, examples: Sequence[Example]) -> Callable[[SoftPrompt | None], Judgement]:
        """What the training loop asks every few percent of its steps, on a sample of the rows."""
        limit = QUICK_ROWS if self.encoder.verbalizer is not None or self.metric == "loss" else QUICK_TEXTS
        encoded = [self.encoder.encode(example) for example in sample_rows(examples, limit, seed=self.seed)]

        def judge(prompt: SoftPrompt | None) -> Judgement:
            judged = self._judge(prompt, encoded)
            refusal = refusal_of(prompt, self.encoder, self.backbone)
            return Judgement(judged.score, judged.loss, lower_is_better=self.metric == "loss", refusal=refusal)

        return judge

    def measure(self, prompt: SoftPrompt | None, examples: Sequence[Example]) -> Measured:
        """The figure for the card."""
        encoded = [self.encoder.encode(example) for example in self.final_rows(examples)]
        judged = self._judge(prompt, encoded)
        return Measured(
            metric=self.metric,
            score=judged.score,
            n=judged.n,
            interval=judged.interval(),
            loss=judged.loss,
            statistic=judged.statistic,
            calibration=judged.calibration(),
        )

    def measure_without_slots(self, examples: Sequence[Example]) -> Measured:
        """Zero-shot: the same template without its slots, the same label words."""
        bare = replace(self.encoder, template=self.encoder.template.without_slots())
        return replace(self, encoder=bare).measure(None, examples)

    def reading(self, loaded: LoadedPrompt) -> tuple[Evaluator, SoftPrompt | None]:
        """The evaluator that reads another version of the task as it is served, and that version's prompt."""
        encoder = replace(self.encoder, template=loaded.template, bos=loaded.bos, verbalizer=loaded.verbalizer)
        prompt = loaded.learned
        if prompt is not None:
            prompt = place(prompt, self.backbone.device, torch.float32)
        return replace(self, encoder=encoder), prompt

    def measure_majority(self, training: Sequence[Example], examples: Sequence[Example]) -> float | None:
        """Always answering the training rows' most common label; None where that is no answer."""
        if self.encoder.verbalizer is None or self.metric == "loss":
            return None
        (common, _), *_ = Counter(str(example.label) for example in training).most_common(1)
        expected = [str(example.label) for example in self.final_rows(examples)]
        metric = macro_f1 if self.metric == "macro_f1" else accuracy
        return metric(expected, [common] * len(expected))

    def final_rows(self, examples: Sequence[Example]) -> list[Example]:
        generated = self.encoder.verbalizer is None and self.metric != "loss"
        return sample_rows(examples, FINAL_TEXTS if generated else FINAL_ROWS, seed=self.seed)

    def _judge(self, prompt: SoftPrompt | None, encoded: Sequence[Encoded]) -> _Judged:
        if self.encoder.verbalizer is not None:
            return self._judge_labels(self.encoder.verbalizer, prompt, encoded)
        return self._judge_texts(prompt, encoded)

    def _judge_labels(self, verbalizer: Verbalizer, prompt: SoftPrompt | None, encoded: Sequence[Encoded]) -> _Judged:
        scores = label_scores(self.backbone, verbalizer, prompt, encoded)  # [N, K]
        expected = np.asarray([one.label for one in encoded])
        given = scores.argmax(1).numpy()
        picked = torch.log_softmax(scores, 1)[torch.arange(len(encoded)), torch.from_numpy(expected)]
        losses = -picked.numpy()
        loss = float(losses.mean())

        def calibration() -> Calibration:
            return self._calibration(verbalizer, prompt, scores.numpy(), expected)

        statistic, share = label_statistic(self.metric, given, expected, losses)
        return _Judged(statistic(np.arange(len(encoded))), loss, len(encoded), statistic, share, calibration)

    def _calibration(
        self, verbalizer: Verbalizer, prompt: SoftPrompt | None, scores: Floats, expected: npt.NDArray[np.int64]
    ) -> Calibration:
        """From the rows' log-scores [N, K] and label indexes [N], before and after contextual calibration."""
        given = prompt.length if isinstance(prompt, PrefixKV) else 0
        inputs = self.encoder.encode_inputs(content_free_inputs(self.encoder.template.fields))
        empty = [one for one in inputs if one.row.total > given]  # a row needs one token to read, as when it is served
        after = calibrate(scores, content_free_prior(label_scores(self.backbone, verbalizer, prompt, empty).numpy()))
        return Calibration(
            ece=expected_calibration_error(scores, expected),
            ece_calibrated=expected_calibration_error(after, expected),
            accuracy=float((scores.argmax(1) == expected).mean()),
            accuracy_calibrated=float((after.argmax(1) == expected).mean()),
        )

    def _judge_texts(self, prompt: SoftPrompt | None, encoded: Sequence[Encoded]) -> _Judged:
        if self.metric == "loss":
            pairs = np.asarray([answer_losses(self.backbone, prompt, [one]) for one in encoded])
            loss = float(pairs[:, 0].sum() / pairs[:, 1].sum())
            return _Judged(loss, loss, len(pairs), lambda at: float(pairs[at, 0].sum() / pairs[at, 1].sum()))
        total, terms = answer_losses(self.backbone, prompt, encoded)
        texts = answers(self.backbone, prompt, encoded, max_tokens=self.max_tokens)
        statistic, share = text_statistic(self.metric, [one.example.output or "" for one in encoded], texts)
        return _Judged(statistic(np.arange(len(texts))), total / terms, len(texts), statistic, share)


def label_statistic(
    metric: Metric, given: npt.NDArray[np.int64], expected: npt.NDArray[np.int64], losses: Floats
) -> tuple[Statistic, bool]:
    """The metric over any of N rows, from label indexes [N] and losses [N]; and whether it is a share of rows."""
    if metric == "loss":
        return lambda at: float(losses[at].mean()), False
    if metric == "macro_f1":
        return lambda at: macro_f1(expected[at].tolist(), given[at].tolist()), False
    right = (expected == given).astype(np.float64)
    return lambda at: float(right[at].mean()), True


def text_statistic(metric: Metric, expected: Sequence[str], given: Sequence[str]) -> tuple[Statistic, bool]:
    """The same of texts, by ROUGE-L or exact match."""
    judge = rouge_l if metric == "rouge_l" else exact_match
    found = np.asarray([judge(one, text) for one, text in zip(expected, given, strict=True)], np.float64)
    return lambda at: float(found[at].mean()), metric == "exact_match"
