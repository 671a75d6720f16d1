"""A hard prompt: nothing is learned by gradient; words before and behind the input are looked for.

`candidates` are pairs of texts, each tried as it is. Without them, words are mined from the training rows, those that
say most about the label and those that are most frequent, and with the label words built up greedily: the one word
whose place makes the dev rows' metric best, then the next, while one helps and the budget lasts (a discrete search in
the spirit of AutoPrompt, Shin et al. 2020, without its gradients). What goes before stands at the template's beginning,
what goes behind directly behind its last field.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field, StrictInt, StringConstraints

from app.backbone import Template, parse_template
from app.backbone.template import Slot
from app.errors import InvalidTemplate
from app.training.methods.base import Asked, Candidate, MethodConfig, Searched, SearchedMethod

INFORMATIVE, FREQUENT = 16, 4
"""Mined words: so many that tell labels apart, so many that are common."""

_WORD = re.compile(r"[^\W\d_]{2,}")
_Text = Annotated[str, StringConstraints(max_length=2000)]


class HardConfig(MethodConfig):
    """Words before and behind the input, chosen by the metric on the dev rows. The version has no vectors."""

    type: Literal["hard"] = "hard"
    candidates: list[tuple[_Text, _Text]] | None = Field(
        default=None, min_length=1, max_length=1000, description="Pairs (before, behind); words are mined without them."
    )
    max_evaluations: Annotated[StrictInt, Field(ge=1, le=1000)] = 64
    max_words: Annotated[StrictInt, Field(ge=1, le=16)] = Field(default=4, description="Most mined words together.")


class Hard(SearchedMethod):
    config = HardConfig

    def check(self, config: HardConfig, asked: Asked) -> HardConfig:
        for place, (before, behind) in enumerate(config.candidates or ()):
            try:
                dress(asked.template, before, behind)
            except InvalidTemplate as error:
                raise InvalidTemplate(error.message, param=f"method.candidates.{place}") from None
        return config

    def evaluations(self, config: HardConfig) -> int:
        wanted = config.max_evaluations
        return wanted if config.candidates is None else min(wanted, len(config.candidates) + 1)

    def search(self, config: HardConfig, around: Searched) -> None:
        best = around.judge(Candidate(around.template)).rank
        if config.candidates is not None:
            for texts in config.candidates:
                around.judge(Candidate(dress(around.template, *texts)))
            return
        words = mine(around.rows, around.label_words)
        before: tuple[str, ...] = ()
        behind: tuple[str, ...] = ()
        for _ in range(config.max_words):
            tried = [((*before, word), behind) for word in words] + [(before, (*behind, word)) for word in words]
            ranked = [(around.judge(_with_words(around.template, *pair)).rank, pair) for pair in tried]
            rank, pair = max(ranked, key=lambda one: one[0], default=(best, (before, behind)))
            if rank <= best:
                return
            best, (before, behind) = rank, pair


METHOD = Hard()


def dress(template: Template, before: str, behind: str) -> Template:
    """The template with `before` at its beginning and `behind` directly behind its last field.

    Raises InvalidTemplate for text that a template cannot hold."""
    head, tail = _around_input(template)
    return parse_template(_escaped(before) + head + _escaped(behind) + tail)


def mine(rows: Sequence[tuple[str, str | None]], label_words: Iterable[str]) -> list[str]:
    """Label words, then words of the rows by how much their presence says about the label (mutual information), then
    by frequency; lower case, each once."""
    labels = Counter(label for _, label in rows)
    seen: Counter[str] = Counter()
    joint: Counter[tuple[str, str | None]] = Counter()
    for text, label in rows:
        for word in sorted(set(_WORD.findall(text.lower()))):
            seen[word] += 1
            joint[word, label] += 1
    frequent = sorted(seen, key=lambda word: (-seen[word], word))
    told = {word: _information(word, seen, joint, labels, len(rows)) for word in frequent} if len(labels) > 1 else {}
    informative = sorted((word for word in told if told[word] > 0), key=lambda word: (-told[word], word))
    own = [word.strip() for word in label_words if _WORD.fullmatch(word.strip())]
    return list(dict.fromkeys([*own, *informative[:INFORMATIVE], *frequent[:FREQUENT]]))


def _information(
    word: str, seen: Counter[str], joint: Counter[tuple[str, str | None]], labels: Counter[str | None], total: int
) -> float:
    """Mutual information of a word's presence and the label, in nats."""
    found = 0.0
    for label, of_label in labels.items():
        for count, of_word in ((joint[word, label], seen[word]), (of_label - joint[word, label], total - seen[word])):
            if count:
                found += count / total * math.log(count * total / (of_word * of_label))
    return found


def _with_words(template: Template, before: Sequence[str], behind: Sequence[str]) -> Candidate:
    words = "".join(f"{word} " for word in before), "".join(f" {word}" for word in behind)
    return Candidate(dress(template, *words))


def _around_input(template: Template) -> tuple[str, str]:
    """The template's source, cut behind its last field."""
    assert not any(isinstance(segment, Slot) for segment in template.segments)
    end = max(match.end() for match in re.finditer(r"\{\{|\}\}|\{[^{}]*\}", template.source) if len(match[0]) > 2)
    return template.source[:end], template.source[end:]


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
