"""The model: a Llama-architecture decoder of transformers, and its loss on packed documents.

A token attends to its own document alone, so what is packed beside a text never shows in it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.recipe import Recipe
from pretraining.tokenizer import BOS, EOS, PAD

HIDDEN = -1e9  # added to a score: its share is then 0 in any precision


class Losses(NamedTuple):
    """`total`: the weighted mean, a scalar. The others `[B]`, in nats: sums over each row of plain losses on what
    counts, of how many that are, and the same of answers."""

    total: Tensor
    plain: Tensor
    counted: Tensor
    answer: Tensor
    answers: Tensor


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


def new_model(recipe: Recipe, vocabulary: int) -> LlamaForCausalLM:
    """Fresh weights, drawn from the recipe's seed; fp32, ready to train."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(model_config(recipe, vocabulary)).train()


def document_mask(ids: Tensor, attention: str) -> Tensor:
    """`[B, 1, T, T]`: token i may see token j if j is not after i and of the same document. `ids`: `[B, T]`.

    As the `attention` implementation takes it: bool for `sdpa`, float32 to be added for `eager`.
    """
    document = (ids == BOS).cumsum(-1)
    same = document[:, :, None] == document[:, None, :]
    places = torch.arange(ids.shape[1], device=ids.device)
    seen = (same & (places[:, None] >= places[None, :]))[:, None]
    return seen if attention == "sdpa" else torch.zeros(seen.shape, device=ids.device).masked_fill(~seen, HIDDEN)


def losses(model: LlamaForCausalLM, ids: Tensor, weights: Tensor, answers: Tensor) -> Losses:
    """Next-token losses of packed rows. `ids` `[B, T + 1]` int64, `weights` `[B, T]`, `answers` `[B, T]` bool."""
    inputs, targets = ids[:, :-1], ids[:, 1:]
    mask = document_mask(inputs, model.config._attn_implementation)
    hidden = model.model(input_ids=inputs, attention_mask=mask).last_hidden_state
    logits = F.linear(hidden, model.lm_head.weight).float()
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    counted = (weights > 0).float()
    chosen = answers.float()
    total = (each * weights).sum() / weights.sum().clamp(min=1e-9)
    plain = each.detach()
    return Losses(total, (plain * counted).sum(1), counted.sum(1), (plain * chosen).sum(1), chosen.sum(1))
