"""Promises of what needs no training: exact on small data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from app.backbone import Backbone, parse_template, score_labels
from app.compare.setting import Setting
from app.compare.written import draw, few_shot, most_common, with_examples, zero_shot
from app.training.data import Example, parse_rows
from tests.training_data import mood_rows
from tests.unit.compare.conftest import mood_task


def test_most_common_answer_is_that_of_the_training_rows(backbone: Backbone) -> None:
    task = mood_task()
    lopsided = replace(task, train=tuple(e for e in task.train if e.label == "good" or e.row < 5))
    fitted, given = most_common(Setting(lopsided, backbone))
    assert given == ["good"] * len(task.test)
    assert fitted.judgement.score == 0.5
    assert (fitted.trained, fitted.template) == (0, "good")


def test_zero_shot_is_the_frozen_model_on_the_bare_words(setting: Setting, backbone: Backbone) -> None:
    fitted = zero_shot(setting)
    assert fitted.template == "{text}\nAnswer:"
    verbalizer = setting.bare.verbalizer
    assert verbalizer is not None
    rows = [setting.bare.encode(e) for e in setting.task.dev]
    alone = torch.stack([score_labels(backbone, [one.row], [None], [verbalizer])[0] for one in rows])
    right = [verbalizer.labels[k] == one.example.label for k, one in zip(alone.argmax(1).tolist(), rows, strict=True)]
    assert fitted.judgement.score == pytest.approx(sum(right) / len(right))
    assert fitted.trained == 0


def test_examples_stand_before_the_input_answered_as_the_template_asks() -> None:
    bare = parse_template("Say {{so}}: {text}\nAnswer:")
    examples = [Example(1, {"text": "one {x}"}, label="good"), Example(2, {"text": "two"}, label="bad")]
    template = with_examples(bare, examples, {"good": [" fine"], "bad": [" poor"]})
    assert template is not None
    assert template.source == (
        "Say {{so}}: one {{x}}\nAnswer: fine\n\nSay {{so}}: two\nAnswer: poor\n\nSay {{so}}: {text}\nAnswer:"
    )
    assert template.fields == ("text",)


def test_draw_takes_labels_evenly_and_the_same_for_a_seed() -> None:
    rows = parse_rows(mood_rows(40)).examples
    picked = draw(rows, 4, seed=3)
    assert sorted(str(e.label) for e in picked) == ["bad", "bad", "good", "good"]
    assert picked == draw(rows, 4, seed=3)
    assert picked != draw(rows, 4, seed=4)


def test_few_shot_takes_fewer_examples_where_the_context_is_short(setting: Setting) -> None:
    narrow = replace(setting, backbone=replace(setting.backbone, max_positions=96))
    wide = few_shot(setting, 6, seed=0).template
    short = few_shot(narrow, 6, seed=0).template
    assert wide.count("Answer:") == 7
    assert 2 <= short.count("Answer:") < 7
