"""`prefix`: a text is read up to some place and written from there (Raffel et al. 2020), the objective by which Lester
et al. 2021 adapt a T5 of span corruption to language modelling, so that a prompt finds text to go on with."""

from __future__ import annotations

import numpy as np

from pretraining.objectives.pairs import Pair, Part
from pretraining.objectives.seq2seq import Seq2Seq
from pretraining.tokenizer import EOS


class Prefix(Seq2Seq):
    name = "prefix"
    writes_text = True
    room_share = 0.55  # half of a window, and ends

    def asked_of(self, ids: list[int], part: Part, chance: np.random.Generator) -> Pair:
        """The place is drawn from the text's second half, so that a row never writes more than half a window. What a
        window cuts off is not ended: the decoder learns `</s>` where a document has it."""
        at = len(ids) - int(chance.integers(1, len(ids) // 2 + 1))
        write = [*ids[at:], EOS] if part.ends else ids[at:]
        return Pair([*ids[:at], EOS], write, [part.weight] * len(write), [False] * len(write))
