"""`spans`: span corruption (Raffel et al. 2020, section 3.1.4). 15 % of a text's tokens, in spans of three on average,
are each replaced by a sentinel; the decoder writes every sentinel with what stood there."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer

from pretraining.errors import RecipeError
from pretraining.objectives.pairs import Pair, Part
from pretraining.objectives.seq2seq import SENTINELS, Seq2Seq
from pretraining.recipe import Recipe
from pretraining.tokenizer import EOS

HIDDEN_SHARE, MEAN_SPAN = 0.15, 3.0


class Spans(Seq2Seq):
    name = "spans"
    writes_text = False
    room_share = 0.25  # 15 % hidden, a third as many sentinels, ends, and what rounding adds in short texts

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        super().__init__(recipe, tokenizer)
        self._first = tokenizer.get_vocab_size()
        longest = max(phase.length for phase in recipe.phases if recipe.objective_of(phase) == self.name)
        if spans_of(longest)[1] > SENTINELS:
            raise RecipeError(f"a window of {longest} tokens has more hidden spans than there are sentinels")

    def asked_of(self, ids: list[int], part: Part, chance: np.random.Generator) -> Pair:
        hidden, count = spans_of(len(ids))
        lengths = (random_lengths(of, count, chance) for of in (len(ids) - hidden, hidden))
        read: list[int] = []
        write: list[int] = []
        at = 0
        for number, (shown, length) in enumerate(zip(*lengths, strict=True)):
            read += [*ids[at : at + shown], self._first + number]
            write += [self._first + number, *ids[at + shown : at + shown + length]]
            at += shown + length
        write.append(EOS)
        return Pair([*read, EOS], write, [part.weight] * len(write), [False] * len(write))


def spans_of(tokens: int) -> tuple[int, int]:
    """(tokens hidden, spans) of a text."""
    hidden = min(max(1, round(HIDDEN_SHARE * tokens)), tokens - 1)
    return hidden, min(max(1, round(hidden / MEAN_SPAN)), hidden, tokens - hidden)


def random_lengths(total: int, parts: int, chance: np.random.Generator) -> list[int]:
    """`parts` lengths of at least 1 that sum to `total`, each way of it as likely as another."""
    cuts = np.sort(chance.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate(([0], cuts, [total]))).astype(int).tolist()
