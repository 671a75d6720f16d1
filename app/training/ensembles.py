"""How good several prompts are together, answering each row by vote or by mean probability as the engine lets them.

`vote`: the answer most members give; among labels with as many votes the one of the higher mean probability, among
texts the one given first. `mean`: the label of the highest mean probability.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from app.backbone import SoftPrompt
from app.training.data import Example
from app.training.evaluate import Evaluator, Measured, Statistic, label_statistic, text_statistic
from app.training.metrics import bootstrap, wilson
from app.training.objective import answer_losses, answers, label_scores
from prompt_store.models import EnsembleMode, Metric


@dataclass(frozen=True)
class Part:
    """One member: the evaluator that reads its template and words; its prompt, float32 on the backbone's device."""

    evaluator: Evaluator
    prompt: SoftPrompt | None


def can_measure(*, labels: bool, mode: EnsembleMode, metric: Metric) -> bool:
    """Whether members' answers are enough: the mean of free text is taken while it is generated, and a text that was
    voted for has no probability of its own."""
    return labels or (mode == "vote" and metric != "loss")


def measure_together(
    parts: Sequence[Part], examples: Sequence[Example], mode: EnsembleMode, metric: Metric
) -> Measured:
    """The metric over the ensemble's answers, on the rows that each member alone would be measured on. `loss` is that
    of the mean probability; of free text the mean of the members'. No calibration.

    Raises ValueError where `can_measure` is false."""
    first = replace(parts[0].evaluator, metric=metric)
    labels = first.encoder.verbalizer is not None
    if not can_measure(labels=labels, mode=mode, metric=metric):
        raise ValueError(f"{metric} of free text by {mode} cannot be told from its members' answers")
    rows = first.final_rows(examples)
    measure = _labels if labels else _texts
    loss, statistic, share = measure(parts, rows, mode, metric)
    score = statistic(np.arange(len(rows)))
    interval = wilson(score, len(rows)) if share else bootstrap(len(rows), statistic)
    return Measured(metric, score, len(rows), interval, loss, statistic)


def _labels(
    parts: Sequence[Part], rows: Sequence[Example], mode: EnsembleMode, metric: Metric
) -> tuple[float, Statistic, bool]:
    first = parts[0].evaluator.encoder.verbalizer
    assert first is not None
    labels = first.labels
    probabilities = torch.stack([_probabilities(part, rows, labels) for part in parts]).numpy()  # [M, N, K]
    mean = probabilities.mean(0)
    votes = np.eye(len(labels))[probabilities.argmax(2)].sum(0)  # [N, K]
    given = (votes + mean if mode == "vote" else mean).argmax(1)
    expected = np.asarray([labels.index(str(example.label)) for example in rows])
    losses = -np.log(np.maximum(mean[np.arange(len(rows)), expected], np.finfo(np.float64).tiny))
    statistic, share = label_statistic(metric, given, expected, losses)
    return float(losses.mean()), statistic, share


def _probabilities(part: Part, rows: Sequence[Example], labels: Sequence[str]) -> torch.Tensor:
    """[N, K] float64, in the order of `labels`."""
    encoder = part.evaluator.encoder
    verbalizer = encoder.verbalizer
    assert verbalizer is not None
    scores = label_scores(part.evaluator.backbone, verbalizer, part.prompt, [encoder.encode(one) for one in rows])
    return scores.double().softmax(1)[:, [verbalizer.labels.index(label) for label in labels]]


def _texts(
    parts: Sequence[Part], rows: Sequence[Example], mode: EnsembleMode, metric: Metric
) -> tuple[float, Statistic, bool]:
    said, losses = [], []
    for part in parts:
        encoded = [part.evaluator.encoder.encode(one) for one in rows]
        backbone = part.evaluator.backbone
        said.append(answers(backbone, part.prompt, encoded, max_tokens=part.evaluator.max_tokens))
        total, terms = answer_losses(backbone, part.prompt, encoded)
        losses.append(total / terms)
    chosen = [Counter(text.strip() for text in of).most_common(1)[0][0] for of in zip(*said, strict=True)]
    statistic, share = text_statistic(metric, [one.output or "" for one in rows], chosen)
    return float(np.mean(losses)), statistic, share
