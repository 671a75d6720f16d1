"""Which training texts share text with a protected row: n-grams of words, compared by hash over whole arrays.

A text overlaps a protected row if, letter case and punctuation aside,

1. a field of the row of `n` words or more shares `n` words in sequence with it; or
2. it holds a shorter field, of `SHORT` words or more, in full: the text of a one-field row, or a premise; or
3. a training row equals the row as a whole. Short texts are compared that way alone: "a good film" is no leak.

Second texts of pairs are compared by rules 1 and 3: "a man is sleeping outside" is the hypothesis of a hundred rows.
The n-gram rule and its 13 words are those of Brown et al. 2020 (Language Models are Few-Shot Learners), appendix C.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

SHORT = 6
_WORD = re.compile(r"[^\W_]+")
_SECOND = frozenset({"hypothesis", "question1", "question2"})
_NOT_TEXT = frozenset({"label", "id"})
_PRIME = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]


class Protected:
    """An index of protected rows. Build it with `add` for each row, then `freeze`, then ask `overlaps`."""

    def __init__(self, n: int = 13) -> None:
        """Raises ValueError if `n` is not above `SHORT`: fields between them could not be told apart."""
        if n <= SHORT:
            raise ValueError(f"n-grams of {n} words are not above {SHORT}")
        self.n = n
        self.found: Counter[str] = Counter()
        """Protected sets, `name/split`, by how many training texts were found to overlap them."""
        self._vocabulary: dict[str, int] = {}
        self._grams: dict[int, dict[int, str]] = {length: {} for length in range(SHORT, n + 1)}
        self._rows: dict[int, str] = {}
        self._sorted: dict[int, Hashes] = {}

    def add(self, origin: str, row: Mapping[str, str]) -> None:
        """Protect a row; `origin` says which set it is of."""
        fields = {key: self._numbers(value) for key, value in row.items() if key not in _NOT_TEXT}
        if not any(map(len, fields.values())):
            return
        self._rows.setdefault(_row_hash(fields.values()), origin)
        for key, numbers in fields.items():
            if len(numbers) >= self.n:
                length = self.n
            elif len(numbers) >= SHORT and key not in _SECOND:
                length = len(numbers)
            else:
                continue
            for value in _rolling(numbers, length).tolist():
                self._grams[length].setdefault(value, origin)

    def freeze(self) -> None:
        """Prepare to answer; rows added later would not be seen."""
        for length, grams in self._grams.items():
            self._sorted[length] = np.sort(np.fromiter(grams, np.uint64, len(grams)))

    def overlaps(self, *texts: str) -> str | None:
        """The set that a training text, or the texts of one training row, overlaps; None if there is none."""
        numbers = [self._numbers(text) for text in texts]
        origin = self._rows.get(_row_hash(numbers))
        for one in numbers:
            origin = origin or self._shared(one)
        if origin is not None:
            self.found[origin] += 1
        return origin

    def _shared(self, numbers: Hashes) -> str | None:
        for length, known in self._sorted.items():
            if len(numbers) < length:
                return None
            if not len(known):
                continue
            grams = _rolling(numbers, length)
            places = np.searchsorted(known, grams)
            hits = np.flatnonzero(known[np.minimum(places, len(known) - 1)] == grams)
            if len(hits):
                return self._grams[length][int(grams[hits[0]])]
        return None

    def _numbers(self, text: str) -> Hashes:
        """A number for each word, scattered over 64 bits; the same word has the same number for this index's life."""
        vocabulary = self._vocabulary
        words = _WORD.findall(text.lower())
        known = np.fromiter((vocabulary.setdefault(word, len(vocabulary) + 1) for word in words), np.uint64, len(words))
        with np.errstate(over="ignore"):
            known *= _PRIME
            known ^= known >> np.uint64(29)
            known *= np.uint64(0xBF58476D1CE4E5B9)
            known ^= known >> np.uint64(32)
        return known


def _rolling(numbers: Hashes, length: int) -> Hashes:
    """One hash for each run of `length` words: a polynomial in 64-bit arithmetic. `[N]` -> `[N - length + 1]`."""
    count = len(numbers) - length + 1
    total = numbers[:count].copy()
    for shift in range(1, length):
        total *= np.uint64(6364136223846793005)  # wraps: arithmetic on arrays does so silently
        total += numbers[shift : shift + count]
    return total


def _row_hash(fields: Iterable[Hashes]) -> int:
    return hash(tuple(field.tobytes() for field in fields))
