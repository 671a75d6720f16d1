"""The forward call of a causal backbone: embeddings in, hidden states out, logits where they are wanted.

It uses transformers' public surface alone: 4-D masks, explicit positions, cache classes. Which form of mask a model
needs (`MaskStyle`) and whether logits may be taken from hidden states by the output embedding are found by the load
probe, not assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from app.backbone.given import GivenPrefixes
from app.backbone.kv import SlotCache
from app.backbone.layout import Layout, attention_mask
from app.backbone.token_probs import token_log_probs

TRAINING_ATTENTION = "chorus_training"
"""Name of the attention that training_form.py gives to models."""


class MaskStyle(Enum):
    """How a model takes masks it did not make itself."""

    FULL = "full"  # every layer sees all that lies before
    WINDOW = "window"  # every layer sees a sliding window
    BY_LAYER_TYPE = "by_layer_type"  # a mapping from layer type to mask


@dataclass(frozen=True)
class Forward:
    """The model with what the probe learned about it."""

    model: Any
    mask_style: MaskStyle = MaskStyle.FULL
    window: int | None = None
    head_apart: bool = True

    @property
    def additive(self) -> bool:
        """Whether masks are added to attention scores instead of read as booleans."""
        return self.model.config._attn_implementation in ("eager", TRAINING_ATTENTION)

    def run(
        self,
        embeds: Tensor,
        layout: Layout,
        reads: Tensor,
        cache: SlotCache | GivenPrefixes | None = None,
        *,
        start: int = 0,
    ) -> Tensor:
        """Logits [N, V] in float32 at `reads` [N], flat indices into the layout's [B, T].

        With a slot cache, the batch occupies slots `start` to `start + B` and sees what they hold.
        """
        return self._logits(self._arguments(embeds, layout, cache, start), reads)

    def log_probs(
        self,
        embeds: Tensor,
        layout: Layout,
        reads: Tensor,
        pick: Tensor,
        tokens: Tensor,
        given: GivenPrefixes | None = None,
    ) -> Tensor:
        """Log-probabilities [M] float32 of `tokens` [M], each at `reads[pick]`, `reads` [N] flat indices into the
        layout's [B, T]. Differentiable, without logits that are kept where the head stands apart."""
        arguments = self._arguments(embeds, layout, given)
        head = self.model.get_output_embeddings()
        if not self.head_apart or not isinstance(head, torch.nn.Linear):
            logits = self._logits(arguments, reads)
            return logits[pick, tokens] - logits.logsumexp(-1)[pick]
        hidden = self.model.base_model(**arguments).last_hidden_state  # [B, T, H]
        device = head.weight.device  # where the model lies on several, the head's own
        picked = hidden.reshape(-1, hidden.shape[-1]).to(device).index_select(0, reads.to(device))
        found = token_log_probs(picked, head.weight, head.bias, pick.to(device), tokens.to(device))
        return found.to(reads.device)

    def fill(self, embeds: Tensor, layout: Layout, cache: Cache) -> None:
        """Have `cache` told of every layer's keys and values of rows that begin with nothing given."""
        self.model.base_model(
            inputs_embeds=embeds,
            attention_mask=self._mask(layout, layout.width),
            position_ids=layout.positions,
            past_key_values=cache,
            use_cache=True,
        )

    def _arguments(
        self, embeds: Tensor, layout: Layout, cache: SlotCache | GivenPrefixes | None, start: int = 0
    ) -> dict[str, Any]:
        keys = layout.keys if cache is not None else layout.width
        return {
            "inputs_embeds": embeds,
            "attention_mask": self._mask(layout, keys),
            "position_ids": layout.positions,
            "past_key_values": cache.view(start, keys, layout.storage) if cache is not None else None,
            "use_cache": cache is not None,
        }

    def step(self, embeds: Tensor, lengths: Tensor, keys: int, cache: SlotCache) -> Tensor:
        """One decode step of rows at slots 0 to B: embeds [B, 1, H], `lengths` [B] tokens already in the cache.
        Logits [B, V] float32. Builds what it needs by tensor operations only."""
        positions = lengths[:, None]  # [B, 1]
        places = torch.arange(keys, device=lengths.device)
        seen = (places <= positions)[:, None, None]  # [B, 1, 1, S]
        if self.mask_style is MaskStyle.FULL:
            mask: Any = self._form(seen)
        else:
            assert self.window is not None
            near = self._form(seen & (positions - places < self.window)[:, None, None])
            mask = near if self.mask_style is MaskStyle.WINDOW else self._by_type(self._form(seen), near)
        arguments = {
            "inputs_embeds": embeds,
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": cache.view(0, keys, positions),
            "use_cache": True,
        }
        return self._logits(arguments, torch.arange(lengths.shape[0], device=lengths.device))

    def _mask(self, layout: Layout, keys: int) -> Any:
        if self.mask_style is MaskStyle.FULL:
            return self._form(attention_mask(layout, keys))
        near = self._form(attention_mask(layout, keys, window=self.window))
        if self.mask_style is MaskStyle.WINDOW:
            return near
        return self._by_type(self._form(attention_mask(layout, keys)), near)

    def _form(self, seen: Tensor) -> Tensor:
        if not self.additive:
            return seen
        zero = torch.zeros((), dtype=self.model.dtype, device=seen.device)
        return torch.where(seen, zero, torch.finfo(self.model.dtype).min)

    def _by_type(self, full: Tensor, near: Tensor) -> dict[str, Tensor]:
        return {"full_attention": full, "sliding_attention": near}

    def _logits(self, arguments: dict[str, Any], reads: Tensor) -> Tensor:
        if self.head_apart:
            hidden = self.model.base_model(**arguments).last_hidden_state  # [B, T, H]
            head = self.model.get_output_embeddings()
            device = head.weight.device  # where the model lies on several, the head's own
            picked = hidden.reshape(-1, hidden.shape[-1]).to(device)[reads.to(device)]
            found: Tensor = head(picked).float().to(reads.device)
            return found
        logits = self.model(**arguments).logits  # [B, T, V]
        return logits.to(reads.device).reshape(-1, logits.shape[-1])[reads].float()
