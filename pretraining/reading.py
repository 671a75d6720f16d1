"""Exercises made from running text alone: they teach what label tasks ask for, without the labels of any.

Where is a sentence from; do two follow each other; which word is missing; what was changed between two sentences; what
kind of thing is described. The last two need what inference needs: laying one sentence beside the other, word by word.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from pretraining.corpus import sentences
from pretraining.documents import Document, asked
from pretraining.surface import draw_style

MIN_WORDS, MAX_WORDS = 6, 40
_DEFINED = re.compile(
    r"^[^.]{2,80}? (?:is|was|are|were) (?P<kind>(?:an?|the|one of the) [^.,;:()\[\]]{3,70}?)"
    r"(?= who\b| that\b| which\b| in\b| from\b| by\b| at\b| for\b| to\b| and\b|[.,;:(])"
)
_BRACKETS = re.compile(r"\s*\([^()]*\)")
_STYLED = {"wikipedia": " encyclopedia", "imdb_reviews": " review", "novels": " novel"}


class Reading:
    """Makes exercises out of one corpus. `source` is its name; the words of earlier sentences serve as decoys."""

    def __init__(self, source: str, rng: random.Random) -> None:
        self.source, self.rng = source, rng
        self._words: list[str] = []

    def exercises(self, record: str) -> Iterator[Document]:
        """Up to five exercises on one record; none if it holds no sentence of a fit length."""
        rng = self.rng
        found = [one for one in sentences(record) if MIN_WORDS <= len(one.split()) <= MAX_WORDS]
        if not found:
            return
        style = draw_style(rng)
        shown = [style(one) for one in rng.sample(found, min(4, len(found)))]
        if self.source in _STYLED:
            yield self.origin(shown[0])
        yield self.follows(found)
        yield self.missing(shown[-1])
        yield self.changed(shown[len(shown) // 2])
        if self.source == "wikipedia":
            yield from self.kind(record, found[0])
        self._words = (self._words + found[0].split())[-400:]

    def origin(self, sentence: str) -> Document:
        """Which corpus a sentence is from."""
        before = self.rng.choice(
            (f"Text: {sentence}\nSource:", f"{sentence}\nKind of text:", f"{sentence}\nReview, novel or encyclopedia?")
        )
        return asked(before, _STYLED[self.source])

    def follows(self, found: Sequence[str]) -> Document:
        """Whether one sentence comes directly after another of the same record."""
        rng = self.rng
        at = rng.randrange(max(1, len(found) - 1))
        is_next = len(found) > 1 and rng.random() < 0.5
        others = [one for index, one in enumerate(found) if index != at + 1] or [found[0]]
        second = found[at + 1] if is_next else rng.choice(others)
        before = rng.choice(
            (
                f"First: {found[at]}\nSecond: {second}\nNext sentence:",
                f"{found[at]}\n{second}\nDoes the second follow the first?",
            )
        )
        return asked(before, " yes" if is_next else " no")

    def missing(self, sentence: str) -> Document:
        """One word blanked, to be named."""
        words = sentence.split()
        at = self._content_word(words)
        shown = " ".join((*words[:at], "____", *words[at + 1 :]))
        label = self.rng.choice(("Blank", "Missing word", "____"))
        return asked(f"{shown}\n{label}:", f" {_bare(words[at])}")

    def changed(self, sentence: str) -> Document:
        """Two versions of a sentence: a word replaced, a word left out, or nothing."""
        rng = self.rng
        words = sentence.split()
        at = self._content_word(words)
        old = _bare(words[at])
        other = list(words)
        draw = rng.random()
        if draw < 0.3:
            answer = " nothing"
        elif draw < 0.6:
            del other[at]
            answer = f" without {old}"
        else:
            new = self._decoy(old)
            other[at] = words[at].replace(old, new)
            answer = f" {old} to {new}"
        pair = (sentence.strip(), " ".join(other))
        if rng.random() < 0.25:
            return asked(f"A: {pair[0]}\nB: {pair[1]}\nThe same?", " yes" if draw < 0.3 else " no")
        return asked(f"A: {pair[0]}\nB: {pair[1]}\nChanged:", answer)

    def kind(self, record: str, sentence: str) -> Iterator[Document]:
        """What an article's first sentence says its subject is."""
        title = record.split("\n", 1)[0].strip()
        found = _DEFINED.match(_BRACKETS.sub("", sentence))
        if found and 2 < len(title) <= 60:
            kind = found["kind"].strip()
            before = self.rng.choice(
                (f"{sentence}\n{title} is", f"Text: {sentence}\nWhat is {title}?", f"{title}\nKind:", f"{title} is")
            )
            yield asked(before, f" {kind}")

    def _content_word(self, words: Sequence[str]) -> int:
        """Place of a word worth asking for: long, capital or a number; else any."""
        fit = [at for at, word in enumerate(words) if len(_bare(word)) > 3 or _bare(word)[:1].isdigit()]
        with_letters = fit or [at for at, word in enumerate(words) if _bare(word)]
        return self.rng.choice(with_letters or range(len(words)))

    def _decoy(self, old: str) -> str:
        bare = [one for one in map(_bare, self._words) if len(one) > 3 and one.lower() != old.lower()]
        return self.rng.choice(bare) if bare else "something"


def _bare(word: str) -> str:
    """A word without the punctuation around it; the word itself if that is all there is."""
    return word.strip(".,;:!?()[]\"'“”‘’-–—…") or word
