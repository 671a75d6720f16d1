"""Texts to read with texts to write, packed: several pairs side by side in a row, none seeing another.

An encoder-decoder's rows are built of documents. An exercise is always read up to its answer, and the answer written;
what is asked of other texts is the objective's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pretraining.mixture import Batch
from pretraining.objectives.base import Ids, Prepared, in_place
from pretraining.tokenizer import BOS, EOS, PAD

START = PAD  # what a decoder begins with, as T5's does
_LONGEST_KNOWN = 8  # tokens of a first word that is kept


class Part(NamedTuple):
    """A document, or what of it a window holds, without `<s>`: `begins` and `ends` say whether its ends are there; its
    `</s>` is left out too. `weight` is that of its text, `answer` the place of its answer, if it has one."""

    ids: list[int]
    begins: bool
    ends: bool
    weight: float
    answer: slice | None
    answer_weight: float


class Pair(NamedTuple):
    """`read` by the encoder; `write` by the decoder, with each token's weight in the loss and whether it answers."""

    read: list[int]
    write: list[int]
    weights: list[float]
    answers: list[bool]


def parts_of(batch: Batch) -> Iterator[list[Part]]:
    """The documents of each row; those that count nothing are left out."""
    for ids, weights, answers in zip(*in_place(batch), strict=True):
        bounds = sorted({0, *np.flatnonzero(ids == BOS).tolist(), len(ids)})
        found = (_part(ids[low:high], weights[low:high], answers[low:high]) for low, high in pairwise(bounds))
        yield [part for part in found if part.ids and (part.weight or part.answer_weight)]


def _part(ids: NDArray[np.int64], weights: NDArray[np.float32], answers: NDArray[np.bool_]) -> Part:
    begins, ends = bool(ids[0] == BOS), bool(ids[-1] == EOS)
    text = slice(int(begins), len(ids) - int(ends))
    ids, weights, answers = ids[text], weights[text], answers[text]
    asked = np.flatnonzero(answers)
    if not len(asked):
        return Part(ids.tolist(), begins, ends, float(weights.max(initial=0.0)), None, 0.0)
    first = int(asked[0])
    last = first + int(np.argmin(np.append(answers[first:], False)))
    weight = float(weights[~answers].max(initial=0.0))
    return Part(ids.tolist(), begins, ends, weight, slice(first, last), float(weights[first]))


def answered(part: Part) -> Pair | None:
    """An exercise as it is asked when served; None where the window holds nothing of it before its answer."""
    assert part.answer is not None
    read, said = part.ids[: part.answer.start], part.ids[part.answer]
    if not read:
        return None
    weights = [part.answer_weight] * len(said)
    return Pair([*read, EOS], [*said, EOS], [*weights, part.weight], [*[True] * len(said), False])


class WithSpace:
    """Ids of a text as the tokenizer gives them when the text comes behind a space, from its ids without it.

    Texts of encoder-decoders begin with a space, as SentencePiece has it in T5: an answer is then the same word in
    front of the decoder as in the midst of a text. Documents are packed without it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        words = (tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size()))
        self._spaced = [word is not None and word.startswith("Ġ") for word in words]
        self._known: dict[tuple[int, ...], list[int]] = {}

    def __call__(self, ids: Ids) -> list[int]:
        """Only what stands before the first space can change."""
        end = next((at for at in range(1, len(ids)) if self._spaced[ids[at]]), len(ids))
        first = tuple(ids[:end])
        changed = self._known.get(first)
        if changed is None:
            text = self._tokenizer.decode(list(first), skip_special_tokens=False)
            spaced = text if text[:1].isspace() else f" {text}"
            changed = self._tokenizer.encode(spaced, add_special_tokens=False).ids
            if len(first) <= _LONGEST_KNOWN:
                self._known[first] = changed
        return [*changed, *ids[end:]]


def packed(rows: Sequence[Iterable[Pair]], width: int, room: int) -> Prepared:
    """Pairs of each row side by side: `width` tokens to read, `room` to write; a pair that no longer fits is left out.

    Inputs: ids to read and the number of each one's pair, `[B, width]`; ids the decoder is given and their pairs,
    `[B, room]`. Pairs count from 1; 0 is padding.
    """
    shape, given_shape = (len(rows), width), (len(rows), room)
    read, read_of = np.full(shape, PAD, np.int64), np.zeros(shape, np.int64)
    given, given_of = np.full(given_shape, PAD, np.int64), np.zeros(given_shape, np.int64)
    targets = np.full(given_shape, PAD, np.int64)
    weights, answers = np.zeros(given_shape, np.float32), np.zeros(given_shape, np.bool_)
    for row, pairs in enumerate(rows):
        at = to = number = 0
        for pair in pairs:
            end, stop = at + len(pair.read), to + len(pair.write)
            if end > width or stop > room:
                continue
            number += 1
            read[row, at:end], read_of[row, at:end] = pair.read, number
            given[row, to:stop], given_of[row, to:stop] = [START, *pair.write[:-1]], number
            targets[row, to:stop], weights[row, to:stop] = pair.write, pair.weights
            answers[row, to:stop] = pair.answers
            at, to = end, stop
    return Prepared((read, read_of, given, given_of), targets, weights, answers)
