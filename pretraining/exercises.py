"""Documents of tasks: rows of train splits, each pass over them in new wordings, styles and order."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from pretraining.corpus import sentences
from pretraining.documents import TASK, Document, Piece
from pretraining.errors import RecipeError
from pretraining.rows import Row
from pretraining.surface import draw_style
from pretraining.wordings import NLI, WORDINGS

REVIEW_CHARS = 1200
_GENERATED = {
    "entailment": "something that must be true",
    "neutral": "something that may be true",
    "contradiction": "something that cannot be true",
}


def exercises(name: str, rows: Sequence[Row], passes: int, rng: random.Random) -> Iterator[tuple[int, Document]]:
    """(pass, document) for each row in each pass. Raises RecipeError for a set that has no wordings."""
    if name not in WORDINGS:
        raise RecipeError(f"no wordings for the set {name}; there are some for {', '.join(sorted(WORDINGS))}")
    for turn in range(passes):
        for row in rows:
            yield turn, exercise(name, row, rng)


def exercise(name: str, row: Row, rng: random.Random) -> Document:
    """One row in a wording drawn at random."""
    style = draw_style(rng)
    fields = {key: style(value) for key, value in row.items() if key != "label"}
    if name == "imdb":
        fields["text"] = style(part_of_review(row["text"], rng))
    label = row["label"]
    if WORDINGS[name] is NLI and label in _GENERATED and rng.random() < 0.05:
        return told(fields, label)
    fit = [wording for wording in WORDINGS[name] if wording.covers(label)]
    return rng.choices(fit, [wording.share for wording in fit])[0].document(fields, label)


def told(fields: Row, label: str) -> Document:
    """The other direction: say what follows, or cannot be. The hypothesis is text, not an answer."""
    return (Piece(f"{fields['premise']}\nSay {_GENERATED[label]}: {fields['hypothesis']}", TASK),)


def part_of_review(text: str, rng: random.Random) -> str:
    """What of a long review is shown: often its last sentences, where opinions are summed up; else a cut of all."""
    parts = sentences(text.replace("<br />", " "))
    if rng.random() < 0.6:
        return " ".join(parts[-rng.randint(1, 3) :])[-REVIEW_CHARS:]
    joined = " ".join(parts)
    if len(joined) <= REVIEW_CHARS:
        return joined
    half = REVIEW_CHARS // 2
    return f"{joined[:half].rsplit(' ', 1)[0]} … {joined[-half:].split(' ', 1)[-1]}"
