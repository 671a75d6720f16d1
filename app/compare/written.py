"""What needs no training: the most common answer, the bare template, and a template with examples in it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from app.backbone import Template, encode_row, parse_template
from app.backbone.template import MAX_TEMPLATE_CHARS, Slot
from app.backbone.template import Literal as Words
from app.compare.fitted import Fitted
from app.compare.setting import Setting
from app.errors import CapabilityMissing
from app.training.data import Example
from app.training.examples import sample_rows
from app.training.runs import Judgement

BETWEEN = "\n\n"
POOL_SHARE = 0.5
"""Examples are drawn from the shorter half of the rows: long ones would leave no room for the input."""


def most_common(setting: Setting) -> tuple[Fitted, list[str]]:
    """The training rows' most common answer, and it as the answer to every test row."""
    task = setting.task
    ((common, hits), *_) = Counter(str(e.label or e.output) for e in task.train).most_common(1)
    right = sum(str(e.label or e.output) == common for e in task.dev)
    judged = Judgement(right / len(task.dev), 0.0)
    return Fitted(judged, 0.0, common, best_step=hits), [common] * len(task.test)


def zero_shot(setting: Setting) -> Fitted:
    """The template's words alone."""
    return Fitted(setting.judge(setting.bare)(None), 0.0, setting.bare.template.source)


def few_shot(setting: Setting, shots: int, *, seed: int) -> Fitted:
    """The template behind `shots` examples, fewer where they would fill more than half of the context.

    Raises CapabilityMissing for a backbone that does not read on from its input.
    """
    if setting.backbone.family != "causal":
        raise CapabilityMissing("examples in the context are for models that read on from their input")
    examples = draw(setting.task.train, shots, seed=seed)
    while examples:
        template = with_examples(setting.bare.template, examples, setting.task.words)
        if template is not None and _tokens(setting, template) <= setting.encoder.max_tokens // 2:
            return Fitted(setting.judge(setting.dressed(template))(None), 0.0, template.source)
        examples = examples[:-1]
    raise CapabilityMissing("no example fits into half of the context")


def draw(rows: Sequence[Example], shots: int, *, seed: int) -> list[Example]:
    """Examples by chance, labels as evenly as they go, in mixed order."""
    short = sorted(rows, key=lambda e: (sum(map(len, e.fields.values())), e.row))
    pool = short[: max(shots, int(POOL_SHARE * len(short)))]
    rng = random.Random(seed)  # noqa: S311 - a draw, not a secret
    by_label: dict[str | None, list[Example]] = {}
    for example in sample_rows(pool, len(pool), seed=seed):
        by_label.setdefault(example.label, []).append(example)
    for of in by_label.values():
        rng.shuffle(of)
    names = sorted(by_label, key=str)
    rng.shuffle(names)
    longest = max(map(len, by_label.values()))
    turns = [by_label[name][turn] for turn in range(longest) for name in names if turn < len(by_label[name])]
    picked = turns[:shots]
    rng.shuffle(picked)
    return picked


def with_examples(
    bare: Template, examples: Sequence[Example], words: Mapping[str, Sequence[str]] | None
) -> Template | None:
    """The template behind the examples, each written as the template asks and answered; None where it is too long."""
    parts = [_escaped(_filled(bare, e.fields) + _answer(bare, e, words)) for e in examples]
    source = BETWEEN.join([*parts, bare.source])
    return parse_template(source) if len(source) <= MAX_TEMPLATE_CHARS else None


def _filled(bare: Template, fields: Mapping[str, str]) -> str:
    found = []
    for segment in bare.segments:
        assert not isinstance(segment, Slot)
        found += [part.text if isinstance(part, Words) else fields[part.name] for part in segment]
    return "".join(found)


def _answer(bare: Template, example: Example, words: Mapping[str, Sequence[str]] | None) -> str:
    if words is not None and example.label is not None:
        return words[example.label][0]
    return bare.separator + str(example.output)


def _tokens(setting: Setting, template: Template) -> int:
    encoder = setting.encoder
    return encode_row(encoder.tokenizer, template, encoder.bos, dict.fromkeys(template.fields, ".")).total


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}").replace("<prompt", "< prompt")
