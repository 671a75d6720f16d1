"""Verbalizers: label -> the words that express it, as token ids.

A label's score is the log-sum-exp over its words of the summed log-probabilities of the word's tokens. Where one word's
ids begin another's, the end token counts in every word, otherwise the shorter could never lose to the longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from app.backbone.template import Template
from app.backbone.tokenizer import BackboneTokenizer
from app.errors import InvalidVerbalizer

MAX_LABELS = 512
MAX_WORDS = 32


@dataclass(frozen=True)
class Verbalizer:
    """`ids[k]` are the words of `labels[k]`, each a tuple of token ids, end token included if `terminated`. `apart`:
    words are read in passes of their own instead of behind one another in the row."""

    labels: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    ids: tuple[tuple[tuple[int, ...], ...], ...]
    terminated: bool
    apart: bool = False

    @cached_property
    def flat(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """(label index, token ids) of every word."""
        return tuple((k, word) for k, words in enumerate(self.ids) for word in words)

    @cached_property
    def branch_tokens(self) -> int:
        """Tokens that scoring adds to a row: every word's ids but its last, which is read and never fed; of words read
        apart, those of the longest."""
        return self.longest if self.apart else sum(len(word) - 1 for _, word in self.flat)

    @cached_property
    def longest(self) -> int:
        return max(len(word) for _, word in self.flat)


def label_words(labels: Sequence[str], template: Template) -> dict[str, tuple[str, ...]]:
    """Each label as its own word, with the space that the template's end wants before it."""
    return {label: (template.separator + label,) for label in labels}


def compile_verbalizer(tokenizer: BackboneTokenizer, words: Mapping[str, Sequence[str]]) -> Verbalizer:
    """Token ids of every word; a word's leading space is the author's own.

    Raises:
        InvalidVerbalizer: no labels, an empty word, words of two labels with equal ids, or colliding words where the
            backbone has no end token to tell them apart.
    """
    if not 2 <= len(words) <= MAX_LABELS:
        raise InvalidVerbalizer(f"a verbalizer has 2 to {MAX_LABELS} labels, not {len(words)}", param="verbalizer")
    ids = tuple(tuple(_word_ids(tokenizer, label, word) for word in of) for label, of in words.items())
    for label, of in zip(words, ids, strict=True):
        if not 1 <= len(of) <= MAX_WORDS:
            raise InvalidVerbalizer(
                f"label `{label}` has {len(of)} words; 1 to {MAX_WORDS} are allowed", param=f"verbalizer.{label}"
            )
    every = [word for of in ids for word in of]
    _check_distinct(list(words), ids)
    # A masked backbone reads words of different lengths at different numbers of masks: none begins another there.
    terminated = tokenizer.family != "masked" and _one_begins_another(every)
    if terminated:
        if not tokenizer.eos_ids:
            raise InvalidVerbalizer("one word begins another and this backbone has no end token", param="verbalizer")
        ids = tuple(tuple((*word, tokenizer.eos_ids[0]) for word in of) for of in ids)
    of_labels = tuple(tuple(of) for of in words.values())
    return Verbalizer(tuple(words), of_labels, ids, terminated, apart=tokenizer.family != "causal")


def _word_ids(tokenizer: BackboneTokenizer, label: str, word: str) -> tuple[int, ...]:
    if not word.strip():
        raise InvalidVerbalizer(f"label `{label}` has an empty word", param=f"verbalizer.{label}")
    ids = tuple(tokenizer.encode_answer(word))
    if not ids or tokenizer.unk_id in ids:
        reason = f"label `{label}` has a word that this backbone cannot spell"
        raise InvalidVerbalizer(reason, param=f"verbalizer.{label}")
    return ids


def _check_distinct(labels: list[str], ids: tuple[tuple[tuple[int, ...], ...], ...]) -> None:
    owner: dict[tuple[int, ...], str] = {}
    for label, of in zip(labels, ids, strict=True):
        for word in of:
            if word in owner:
                raise InvalidVerbalizer(
                    f"labels `{owner[word]}` and `{label}` share a word with the same tokens",
                    param=f"verbalizer.{label}",
                )
            owner[word] = label


def _one_begins_another(words: Sequence[tuple[int, ...]]) -> bool:
    known = set(words)
    return any(word[:n] in known for word in words for n in range(1, len(word)))
