"""What objectives of an encoder-decoder share: a T5 with gated feed-forward, its loss on packed pairs, its scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import T5Config, T5ForConditionalGeneration

from pretraining.mixture import Batch
from pretraining.objectives.base import Ids, Losses, Objective, Prepared, attention_form, by_length, summed
from pretraining.objectives.pairs import START, Pair, Part, WithSpace, answered, packed, parts_of
from pretraining.recipe import Recipe
from pretraining.tokenizer import EOS, PAD

SENTINELS = 100  # as many as T5 has; their ids follow the tokenizer's
SHORTEST = 8  # tokens of a text from which something is asked


class Seq2Seq(Objective):
    family = "seq2seq"
    room_share: ClassVar[float]
    """Tokens that the decoder writes, at most, as a share of a window's."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        super().__init__(recipe, tokenizer)
        self._with_space = WithSpace(tokenizer)

    @classmethod
    def build_model(cls, recipe: Recipe, vocabulary: int) -> T5ForConditionalGeneration:
        """T5's proportions but for the gated feed-forward of its v1.1; embeddings are shared by both sides and the
        output. `recipe.shape.layers` are those of each side."""
        shape = recipe.shape
        config = T5Config(
            vocab_size=vocabulary + SENTINELS,
            d_model=shape.hidden,
            d_kv=shape.hidden // shape.heads,
            d_ff=shape.feed_forward,
            num_layers=shape.layers,
            num_heads=shape.heads,
            feed_forward_proj="gated-gelu",
            n_positions=shape.context,
            dropout_rate=0.0,  # as T5 v1.1 is pretrained
            tie_word_embeddings=True,
            decoder_start_token_id=START,
            eos_token_id=EOS,
            pad_token_id=PAD,
            attn_implementation=recipe.train.attention,
        )
        return T5ForConditionalGeneration(config)

    @abstractmethod
    def asked_of(self, ids: list[int], part: Part, chance: np.random.Generator) -> Pair:
        """What to read and write of a text. `ids` are the part's as the encoder reads them, at least `SHORTEST`."""

    def prepare(self, batch: Batch, chance: np.random.Generator) -> Prepared:
        width = batch.weights.shape[1]
        rows = [list(filter(None, (self._pair(part, chance) for part in parts))) for parts in parts_of(batch)]
        return packed(rows, width, max(SHORTEST, round(self.room_share * width)))

    @staticmethod
    def losses(model: Any, *tensors: Tensor) -> Losses:
        read, read_of, given, given_of, targets, weights, answers = tensors
        attention = model.config._attn_implementation
        places = torch.arange(given.shape[1], device=given.device)
        own = given_of[:, :, None] == given_of[:, None, :]
        to_text = (given_of[:, :, None] == read_of[:, None, :]) | (given_of == 0)[:, :, None]  # padding sees something
        found = _hidden(
            model,
            read,
            given,
            attention_form(read_of[:, :, None] == read_of[:, None, :], attention),
            attention_form(own & (places[:, None] >= places[None, :]), attention),
            attention_form(to_text, attention),
        )
        return summed(_logits(model, found), targets, weights, answers)

    @torch.no_grad()
    def label_scores(self, model: Any, texts: Sequence[str], words: Sequence[str]) -> Tensor:
        """The text is read, the word written."""
        read = [[*self._encode(text), EOS] for text in texts]
        of_words = [self._encode(word) for word in words]
        scores = torch.empty(len(read), len(of_words))
        for rows in by_length(read):
            encoded, seen = _encoded(model, [read[row] for row in rows])
            for column, word in enumerate(of_words):
                scores[rows, column] = _written(model, encoded, seen, word)
        return scores

    def dress(self, tokenizer: Tokenizer) -> None:
        """Texts begin with a space and end with `</s>`; sentinels are tokens of their own."""
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", EOS)]
        )
        names = (f"<extra_id_{number}>" for number in range(SENTINELS))
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])

    def _pair(self, part: Part, chance: np.random.Generator) -> Pair | None:
        """What is asked of a document; None of one that is too short, or was cut off before its answer."""
        if part.answer is None:
            ids = self._with_space(part.ids) if part.begins else part.ids
            return self.asked_of(ids, part, chance) if len(ids) >= SHORTEST else None
        pair = answered(part)
        if pair is None or not part.begins:
            return pair
        return pair._replace(read=[*self._with_space(pair.read[:-1]), EOS])

    def _encode(self, text: str) -> list[int]:
        spaced = text if text[:1].isspace() else f" {text}"
        ids: list[int] = self.tokenizer.encode(spaced, add_special_tokens=False).ids
        return ids


def _hidden(model: Any, read: Tensor, given: Tensor, seen: Tensor, own: Tensor, to_text: Tensor) -> Tensor:
    encoded = model.encoder(input_ids=read, attention_mask=seen).last_hidden_state
    return _decoded(model, encoded, given, own, to_text)


def _decoded(model: Any, encoded: Tensor, given: Tensor, own: Tensor, to_text: Tensor) -> Tensor:
    """`[B, N, H]`, of masks in the model's form."""
    hidden: Tensor = model.decoder(
        input_ids=given,
        attention_mask=own,
        encoder_hidden_states=encoded,
        encoder_attention_mask=to_text,
        use_cache=False,
    ).last_hidden_state
    return hidden


def _logits(model: Any, hidden: Tensor) -> Tensor:
    """`[B, N, V]` float32, scaled as T5 scales what its embeddings are multiplied with."""
    if model.config.scale_decoder_outputs:
        hidden = hidden * model.model_dim**-0.5
    return F.linear(hidden, model.lm_head.weight).float()


def _encoded(model: Any, texts: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """(what the encoder makes of the texts, `[B, T, H]`; which of its tokens are real, `[B, T]`)."""
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[PAD] * (width - len(text))] for text in texts], device=model.device)
    real = torch.tensor([[at < len(text) for at in range(width)] for text in texts], device=model.device)
    mask = attention_form(real[:, None, :].expand(-1, width, -1), model.config._attn_implementation)
    return model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state, real


def _written(model: Any, encoded: Tensor, real: Tensor, word: Ids) -> Tensor:
    """log p(word) behind each encoded text. `[B]` float32, on the CPU."""
    rows, count = len(encoded), len(word)
    given = torch.tensor([START, *word[:-1]], device=model.device).expand(rows, -1)
    attention = model.config._attn_implementation
    before = torch.ones(count, count, dtype=torch.bool, device=model.device).tril().expand(rows, -1, -1)
    own, to_text = attention_form(before, attention), attention_form(real[:, None].expand(-1, count, -1), attention)
    logits = _logits(model, _decoded(model, encoded, given, own, to_text)).log_softmax(-1).cpu()
    return logits[:, range(count), list(word)].sum(1)
