"""`causal`: a Llama-architecture decoder says each token from those before it, of its own document alone.

What is packed beside a text never shows in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.mixture import Batch
from pretraining.objectives.base import (
    Ids,
    Losses,
    Objective,
    Prepared,
    attention_form,
    by_length,
    same_document,
    summed,
)
from pretraining.recipe import Recipe
from pretraining.tokenizer import BOS, EOS, PAD


class Causal(Objective):
    name = "causal"
    family = "causal"
    writes_text = True

    @classmethod
    def build_model(cls, recipe: Recipe, vocabulary: int) -> LlamaForCausalLM:
        return LlamaForCausalLM(model_config(recipe, vocabulary))

    def prepare(self, batch: Batch, chance: np.random.Generator) -> Prepared:
        return Prepared((batch.ids[:, :-1],), batch.ids[:, 1:], batch.weights, batch.answers)

    @staticmethod
    def losses(model: Any, *tensors: Tensor) -> Losses:
        ids, targets, weights, answers = tensors
        mask = document_mask(ids, model.config._attn_implementation)
        hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return summed(F.linear(hidden, model.lm_head.weight).float(), targets, weights, answers)

    def label_scores(self, model: Any, texts: Sequence[str], words: Sequence[str]) -> Tensor:
        encode = self.tokenizer.encode
        prompts = [[BOS, *encode(text, add_special_tokens=False).ids] for text in texts]
        return word_scores(model, prompts, [encode(word, add_special_tokens=False).ids for word in words])

    def dress(self, tokenizer: Tokenizer) -> None:
        """Nothing: it puts `<s>` before a text, as documents are packed."""


def model_config(recipe: Recipe, vocabulary: int) -> LlamaConfig:
    """On a CPU `eager` attention, compiled, is a fifth faster than `sdpa` for such small heads and short windows."""
    shape = recipe.shape
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        rope_theta=shape.rope_theta,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        attn_implementation=recipe.train.attention,
        use_cache=False,
    )


def document_mask(ids: Tensor, attention: str) -> Tensor:
    """`[B, 1, T, T]`: token i may see token j if j is not after i and of the same document. `ids`: `[B, T]`."""
    places = torch.arange(ids.shape[1], device=ids.device)
    return attention_form(same_document(ids) & (places[:, None] >= places[None, :]), attention)


@torch.no_grad()
def word_scores(model: Any, prompts: Sequence[Ids], words: Sequence[Ids]) -> Tensor:
    """log p(word | prompt), summed over the word's tokens. `[prompts, words]` float32, on the CPU."""
    single = all(len(word) == 1 for word in words)
    scores = torch.empty(len(prompts), len(words))
    for rows in by_length(prompts):
        if single:
            last = _log_probabilities(model, [prompts[row] for row in rows], 1)[:, 0]
            scores[rows] = last[:, [word[0] for word in words]]
            continue
        for column, word in enumerate(words):
            found = _log_probabilities(model, [[*prompts[row], *word] for row in rows], len(word) + 1)[:, :-1]
            scores[rows, column] = found.gather(2, torch.tensor(word).expand(len(rows), -1)[..., None]).sum((1, 2))
    return scores


def _log_probabilities(model: Any, texts: Sequence[Ids], last: int) -> Tensor:
    """Of the token after each of the last `last` tokens of each text. `[texts, last, V]` float32, on the CPU.

    Padding stands behind the texts, where a causal model does not look.
    """
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[PAD] * (longest - len(text))] for text in texts], device=model.device)
    hidden = model.model(input_ids=ids).last_hidden_state
    places = torch.tensor([[len(text) - last + at for at in range(last)] for text in texts], device=model.device)
    chosen = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
    return F.linear(chosen, model.lm_head.weight).float().log_softmax(-1).cpu()
