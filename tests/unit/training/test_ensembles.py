"""Members measured together answer as the engine lets them answer together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from app.backbone import Backbone, compile_verbalizer, default_bos, parse_template
from app.engine.answers import Answer, Usage
from app.engine.ensemble import mean, vote
from app.training import ensembles
from app.training.data import Example
from app.training.ensembles import Part, can_measure, measure_together
from app.training.evaluate import Evaluator
from app.training.examples import Encoder

LABELS = ("bad", "good", "fair")
ROWS = [Example(row=n, fields={"text": f"number {n}"}, label=LABELS[n % 3]) for n in range(1, 31)]


def parts(backbone: Backbone, count: int = 3) -> list[Part]:
    """Members whose labels stand in different orders."""
    found = []
    for member in range(count):
        order = LABELS[member % 3 :] + LABELS[: member % 3]
        verbalizer = compile_verbalizer(backbone.tokenizer, {label: [f" {label}"] for label in order})
        template = parse_template("{text} It was<prompt:2>")
        encoder = Encoder(backbone.tokenizer, template, default_bos(backbone.tokenizer), verbalizer, 64)
        prompt = torch.randn(2, backbone.hidden_size, generator=torch.Generator().manual_seed(member))
        found.append(Part(Evaluator(backbone, encoder, "accuracy", 8, 0), prompt * 3 * backbone.embedding_rms))
    return found


@pytest.mark.parametrize("mode", ["vote", "mean"])
@pytest.mark.parametrize("count", [2, 3])
def test_accuracy_is_that_of_the_engines_answers(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, mode: Any, count: int
) -> None:
    told: list[torch.Tensor] = []
    generator = torch.Generator().manual_seed(3)

    def label_scores(_: Any, verbalizer: Any, *rest: Any) -> torch.Tensor:
        told.append(torch.randn(len(ROWS), 3, generator=generator) * 2)
        return told[-1][:, [LABELS.index(label) for label in verbalizer.labels]]

    monkeypatch.setattr(ensembles, "label_scores", label_scores)
    found = measure_together(parts(backbone, count), ROWS, mode, "accuracy")
    right = []
    for place, row in enumerate(ROWS):
        answers = []
        for scores in told:
            shares = dict(zip(LABELS, scores[place].double().softmax(0).tolist(), strict=True))
            best = max(shares, key=shares.__getitem__)
            answers.append(Answer(best, "label", Usage(0, 0, 0), label=best, scores=shares))
        right.append((vote if mode == "vote" else mean)(answers)[0].label == row.label)
    assert 0 < sum(right) < len(ROWS)
    assert (found.score, found.n) == (pytest.approx(sum(right) / len(ROWS)), len(ROWS))
    assert [found.statistic(np.array([place])) for place in range(len(ROWS))] == right


def test_equal_members_are_as_good_as_one_of_them(backbone: Backbone) -> None:
    (part, *_) = parts(backbone)
    alone = part.evaluator.measure(part.prompt, ROWS)
    together = measure_together([part, part], ROWS, "vote", "accuracy")
    assert (together.score, together.n, together.interval) == (alone.score, alone.n, alone.interval)
    assert together.loss == pytest.approx(alone.loss, abs=1e-4)


def test_texts_are_voted_on(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([["a", "x", "b "], ["b", "x", "b"], ["b", "y", "c"]])
    monkeypatch.setattr(ensembles, "answers", lambda *_, **__: next(said))
    monkeypatch.setattr(ensembles, "answer_losses", lambda *_: (3.0, 3))
    rows = [Example(row=n, fields={"text": "t"}, output=output) for n, output in enumerate(["b", "x", "c"], 1)]
    members = [
        Part(replace(part.evaluator, encoder=replace(part.evaluator.encoder, verbalizer=None)), part.prompt)
        for part in parts(backbone)
    ]
    found = measure_together(members, rows, "vote", "exact_match")
    assert (found.score, found.loss) == (pytest.approx(2 / 3), 1.0)


@pytest.mark.parametrize(
    ("labels", "mode", "metric", "can"),
    [
        (True, "mean", "loss", True),
        (False, "vote", "rouge_l", True),
        (False, "mean", "rouge_l", False),
        (False, "vote", "loss", False),
    ],
)
def test_what_answers_cannot_tell_is_not_measured(labels: bool, mode: Any, metric: Any, can: bool) -> None:
    assert can_measure(labels=labels, mode=mode, metric=metric) is can
