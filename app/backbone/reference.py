"""The plain reference runner: each row alone, through the model's own forward and its own cache.

Slow and sure. It serves models whose fast path the probe found to disagree (their own positions or masks), and it is
what the probe and the tests compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from app.backbone.kv import PrefixKV
from app.backbone.layout import embed, lay_out
from app.backbone.rows import Row
from app.backbone.runner import Prefilled, PrefillItem
from app.backbone.verbalizer import Verbalizer


class ReferenceRunner:
    """Same interface as FastRunner; no batching, no padding, no masks, no prompt reuse."""

    name = "reference"

    def __init__(self, model: Any, *, slots: int, places: int) -> None:
        self.slots, self.places = slots, places
        self._model = model
        self._embedding = model.get_input_embeddings()
        self._caches: list[DynamicCache | None] = [None] * slots

    def prefill(self, start: int, items: Sequence[PrefillItem]) -> Prefilled:
        logits, scores = [], []
        for slot, item in enumerate(items, start):
            cache = DynamicCache(config=self._model.config)
            logits.append(plain_logits(self._model, self.embeds(item.row, item.prompt), cache)[-1])
            self._caches[slot] = cache
            scores.append(self.score(item.row, item.prompt, item.verbalizer) if item.verbalizer else None)
        return Prefilled(torch.stack(logits), scores, tokens=sum(item.row.total for item in items), padding=0)

    def decode(self, tokens: Tensor, lengths: Tensor, longest: int) -> Tensor:
        embeds = self._embedding(tokens[:, None])  # [B, 1, H]
        for cache, length in zip(self._caches, lengths.tolist(), strict=False):
            excess = _tokens_in(cache) - length
            if cache is not None and excess > 0:
                cache.crop(-excess)  # this step failed before, after it had written the row
        return torch.stack(
            [plain_logits(self._model, embeds[i : i + 1], self._caches[i])[-1] for i in range(len(tokens))]
        )

    def read_prefix(self, slot: int, length: int) -> PrefixKV | None:
        return None

    def move(self, source: int, target: int, length: int) -> None:
        self._caches[target], self._caches[source] = self._caches[source], None

    def wipe(self, slot: int) -> None:
        self._caches[slot] = None

    def embeds(self, row: Row, prompt: Tensor | None) -> Tensor:
        """[1, T, H]"""
        return embed(lay_out([row], offsets=[0], device=self._embedding.weight.device), self._embedding, prompt)

    def score(self, row: Row, prompt: Tensor | None, verbalizer: Verbalizer) -> Tensor:
        """Log-scores [K] of the labels, each word in a forward of its own."""
        scores: list[list[Tensor]] = [[] for _ in verbalizer.labels]
        for label, word in verbalizer.flat:
            scores[label].append(self.answer_logprobs(row, prompt, word).sum())
        return torch.stack([torch.stack(words).logsumexp(0) for words in scores])

    def answer_logprobs(self, row: Row, prompt: Tensor | None, answer: Sequence[int]) -> Tensor:
        """Log-probability of each token of a given answer, [len(answer)] float32."""
        whole = Row((*row.ids, *answer[:-1]))
        logits = plain_logits(self._model, self.embeds(whole, prompt))[-len(answer) :]
        ids = torch.tensor(answer, device=logits.device)
        return logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]


def _tokens_in(cache: DynamicCache | None) -> int:
    """0 for the caches of recurrent models, which do not count."""
    try:
        return 0 if cache is None else int(cache.get_seq_length())
    except ValueError:
        return 0


def plain_logits(model: Any, embeds: Tensor, cache: DynamicCache | None = None) -> Tensor:
    """The model's own forward on one unpadded row, embeds [1, T, H]: logits [T, V] float32."""
    return model(inputs_embeds=embeds, past_key_values=cache, use_cache=cache is not None).logits[0].float()
