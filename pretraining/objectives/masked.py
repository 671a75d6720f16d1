"""`masked`: a BERT names the tokens that are hidden in a text (Devlin et al. 2019), and answers where they are asked.

Of running text 15 % of the tokens are to be named: 80 % of them show `<mask>`, 10 % a word drawn at random, 10 % what
stood there. Of an exercise the answer is hidden whole, as when a label is asked; the rest of its text is read as it is
in half of the exercises, and hidden as running text in the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, processors
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from pretraining.mixture import Batch
from pretraining.objectives.base import (
    Ids,
    Losses,
    Objective,
    Prepared,
    attention_form,
    by_length,
    in_place,
    same_document,
    summed,
)
from pretraining.recipe import Recipe
from pretraining.tokenizer import BOS, EOS, MASK, PAD

HIDDEN_SHARE, AS_MASK, AS_OTHER = 0.15, 0.8, 0.1
READ_WHOLE = 0.5  # of the exercises


class Masked(Objective):
    name = "masked"
    family = "masked"
    writes_text = False

    @classmethod
    def build_model(cls, recipe: Recipe, vocabulary: int) -> BertForMaskedLM:
        shape = recipe.shape
        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            max_position_embeddings=shape.context,
            type_vocab_size=1,
            hidden_dropout_prob=0.0,  # no text is seen often enough to be learned by heart
            attention_probs_dropout_prob=0.0,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
            attn_implementation=recipe.train.attention,
        )
        return BertForMaskedLM(config)

    def prepare(self, batch: Batch, chance: np.random.Generator) -> Prepared:
        ids, weights, answers = in_place(batch)
        rows, width = ids.shape
        shown = ids.copy()
        most = width // 4  # so many are named at most, for a shape that does not change; answers come first
        places, targets = np.zeros((rows, most), np.int64), np.full((rows, most), PAD, np.int64)
        weighed, asked = np.zeros((rows, most), np.float32), np.zeros((rows, most), np.bool_)
        for row in range(rows):
            named = self._hide(shown[row], weights[row], answers[row], chance)
            shown[row, named[most:]] = ids[row, named[most:]]
            named = named[:most]
            count = len(named)
            places[row, :count], targets[row, :count] = named, ids[row, named]
            weighed[row, :count], asked[row, :count] = weights[row, named], answers[row, named]
        return Prepared((shown, positions_of(ids), places), targets, weighed, asked)

    @staticmethod
    def losses(model: Any, *tensors: Tensor) -> Losses:
        ids, positions, places, targets, weights, answers = tensors
        mask = attention_form(same_document(ids), model.config._attn_implementation)
        hidden = model.bert(input_ids=ids, position_ids=positions, attention_mask=mask).last_hidden_state
        chosen = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
        return summed(model.cls(chosen).float(), targets, weights, answers)

    @torch.no_grad()
    def label_scores(self, model: Any, texts: Sequence[str], words: Sequence[str]) -> Tensor:
        """A word of n tokens is read at n masks behind the text, all seen at once."""
        encode = self.tokenizer.encode
        asked = [[BOS, *encode(text, add_special_tokens=False).ids] for text in texts]
        of_words = [encode(word, add_special_tokens=False).ids for word in words]
        scores = torch.empty(len(asked), len(of_words))
        for count in sorted(set(map(len, of_words))):
            columns = [column for column, word in enumerate(of_words) if len(word) == count]
            for rows in by_length(asked):
                found = _at_masks(model, [asked[row] for row in rows], count)
                for column in columns:
                    word = torch.tensor(of_words[column])
                    scores[rows, column] = found[:, range(count), word].sum(1)
        return scores

    def dress(self, tokenizer: Tokenizer) -> None:
        """Texts are framed as documents are: `<s>` … `</s>`."""
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )

    def _hide(
        self,
        shown: NDArray[np.int64],
        weights: NDArray[np.float32],
        answers: NDArray[np.bool_],
        chance: np.random.Generator,
    ) -> NDArray[np.int64]:
        """Hide tokens in a row `shown`; the places of all that are to be named, answers first."""
        document = (shown == BOS).cumsum()
        counts = weights > 0
        exercise = np.zeros(document[-1] + 1, np.bool_)
        exercise[document[answers]] = True
        whole = exercise & (chance.random(len(exercise)) < READ_WHOLE)
        free = np.flatnonzero(counts & ~answers & ~whole[document] & (shown > MASK))
        chosen = chance.choice(free, round(HIDDEN_SHARE * len(free)), replace=False)
        fate = chance.random(len(chosen))
        shown[chosen[fate < AS_MASK]] = MASK
        other = chosen[fate >= 1 - AS_OTHER]
        shown[other] = chance.integers(MASK + 1, self.tokenizer.get_vocab_size(), len(other))
        asked = np.flatnonzero(answers & counts)
        shown[asked] = MASK
        return np.concatenate((asked, chosen))


def positions_of(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """`[B, T]`: places counted from each document's begin, as a text is read that stands alone."""
    places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    begins = np.maximum.accumulate(np.where(ids == BOS, places, 0), axis=1)
    positions: NDArray[np.int64] = places - begins
    return positions


def _at_masks(model: Any, texts: Sequence[Ids], count: int) -> Tensor:
    """Log-probabilities at `count` masks behind each text. `[texts, count, V]` float32, on the CPU."""
    width = max(map(len, texts)) + count + 1
    rows = [[*text, *[MASK] * count, EOS] for text in texts]
    ids = torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows], device=model.device)
    real = torch.tensor([[at < len(row) for at in range(width)] for row in rows], device=model.device)
    seen = real[:, None, :].expand(-1, width, -1)
    mask = attention_form(seen, model.config._attn_implementation)
    hidden = model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
    places = torch.tensor([[len(text) + at for at in range(count)] for text in texts], device=model.device)
    chosen = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
    return model.cls(chosen).float().log_softmax(-1).cpu()
