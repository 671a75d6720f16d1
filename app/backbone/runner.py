"""Runners: what turns rows into logits while keeping their keys and values. The engine sees only this interface.

`FastRunner` runs all rows in one forward over a `SlotCache`. `ReferenceRunner` (reference.py) runs them one by one
through the model's own forward and cache, for models whose fast path the load probe found to disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from app.backbone.forward import Forward
from app.backbone.kv import KVShape, PrefixKV, SlotCache
from app.backbone.layout import embed, lay_out, stack_prompts
from app.backbone.rows import Row
from app.backbone.score_plan import plan_scores, word_branches
from app.backbone.soft_prompt import EncoderDecoderPrompt, SoftPrompt, vectors_of
from app.backbone.verbalizer import Verbalizer


@dataclass(frozen=True)
class PrefillItem:
    """A row to run for the first time. `prompt` [P, H] on the backbone's device, or None; `prefix` its cached keys and
    values, or None to compute them in passing; `verbalizer` if its labels are to be scored; `trunk` counts the leading
    ids, plain text, that it shares with the item before it: a runner may compute them once, and need not. `decoder`
    is the whole prompt where it has a side of its own for an encoder-decoder's decoder."""

    row: Row
    prompt: Tensor | None = None
    prefix: PrefixKV | None = None
    verbalizer: Verbalizer | None = None
    trunk: int = 0
    decoder: EncoderDecoderPrompt | None = None


def prefill_item(row: Row, prompt: SoftPrompt | None, verbalizer: Verbalizer | None = None) -> PrefillItem:
    """A row with its prompt, whatever the prompt's form."""
    given = prompt if isinstance(prompt, PrefixKV) else None
    sides = prompt if isinstance(prompt, EncoderDecoderPrompt) else None
    return PrefillItem(row, vectors_of(prompt), given, verbalizer, decoder=sides)


@dataclass(frozen=True)
class Prefilled:
    """`logits` [n, V], float32 or in the model's dtype, after each row's last token; `scores` [K] float32 for rows with
    a verbalizer.
    `padding` counts tokens that were computed only to fill the batch up."""

    logits: Tensor
    scores: list[Tensor | None]
    tokens: int
    padding: int


class Runner(Protocol):
    """Rows live in slots 0 to `slots`; a row has at most `places` tokens, label words included."""

    name: str
    slots: int
    places: int

    def prefill(self, start: int, items: Sequence[PrefillItem]) -> Prefilled:
        """Run new rows, in the slots from `start` on."""
        ...

    def decode(self, tokens: Tensor, lengths: Tensor, longest: int) -> Tensor:
        """Feed one token [B] to each row in slots 0 to B, which hold `lengths` [B] tokens, at most `longest`.
        Logits [B, V], float32 or in the model's dtype."""
        ...

    def read_prefix(self, slot: int, length: int) -> PrefixKV | None:
        """Keys and values of a slot's first tokens, to be reused for the same prompt; None if this runner can't."""
        ...

    def move(self, source: int, target: int, length: int) -> None: ...

    def wipe(self, slot: int) -> None: ...


class FastRunner:
    """One forward over rows of any prompts, lengths and templates."""

    name = "fast"
    shares_text = True  # see `PrefillItem.trunk`

    def __init__(self, forward: Forward, *, slots: int, places: int) -> None:
        self.slots, self.places = slots, places
        self._forward = forward
        self._embedding = forward.model.get_input_embeddings()
        self._cache = SlotCache(forward.model.config.get_text_config().num_hidden_layers, slots=slots, places=places)

    @property
    def kv_shape(self) -> KVShape | None:
        """What a token leaves behind; known after the first prefill."""
        return self._cache.shape

    def prefill(self, start: int, items: Sequence[PrefillItem]) -> Prefilled:
        rows = [item.row for item in items]
        # A row's last token is always computed: its logits are wanted.
        cached = [min(item.prefix.length, item.row.total - 1) if item.prefix else 0 for item in items]
        self._copy_prefixes(start, items)
        read = self._read_texts(start, items, cached)
        table, offsets = stack_prompts([item.prompt for item in items])
        branches = [word_branches(item.verbalizer) if item.verbalizer else [] for item in items]
        device = self._embedding.weight.device
        layout = lay_out(rows, offsets=offsets, cached=cached, branches=branches, device=device)
        plan = plan_scores(layout.flat_ends, [item.verbalizer for item in items], device)
        embeds = embed(layout, self._embedding, table)
        logits = self._forward.run(embeds, layout, plan.reads, self._cache, start=start)  # [N, V]
        scored = iter(plan.label_scores(logits))
        return Prefilled(
            logits=logits[plan.trunks],
            scores=[next(scored) if item.verbalizer else None for item in items],
            tokens=layout.tokens + read,
            padding=layout.rows * layout.width - layout.tokens,
        )

    def decode(self, tokens: Tensor, lengths: Tensor, longest: int) -> Tensor:
        return self._forward.step(self._embedding(tokens[:, None]), lengths, longest + 1, self._cache)

    def read_prefix(self, slot: int, length: int) -> PrefixKV | None:
        return self._cache.read_prefix(slot, length)

    def move(self, source: int, target: int, length: int) -> None:
        self._cache.move(source, target, length)

    def wipe(self, slot: int) -> None:
        self._cache.wipe(slot)

    def _read_texts(self, start: int, items: Sequence[PrefillItem], cached: list[int]) -> int:
        """Compute the text that rows side by side share, in the first one's slot, and copy it to the others': then all
        have it `cached`. Each text is a pass by itself, so that nothing is padded. Returns the tokens that took."""
        spent = 0
        firsts = [i for i, item in enumerate(items) if not item.trunk]
        for first, stop in zip(firsts, (*firsts[1:], len(items)), strict=True):
            shared = min((item.trunk for item in items[first + 1 : stop]), default=0)
            if shared <= cached[first]:
                continue
            layout = lay_out([Row(items[first].row.ids[:shared])], offsets=[0], device=self._embedding.weight.device)
            last = torch.tensor([shared - 1], device=self._embedding.weight.device)
            self._forward.run(embed(layout, self._embedding, None), layout, last, self._cache, start=start + first)
            self._cache.copy(start + first, [start + i for i in range(first + 1, stop)], shared)
            cached[first:stop] = [shared] * (stop - first)
            spent += shared
        return spent

    def _copy_prefixes(self, start: int, items: Sequence[PrefillItem]) -> None:
        """One copy for each distinct prompt, whatever the number of its rows."""
        slots: dict[int, list[int]] = {}
        prefixes: dict[int, PrefixKV] = {}
        for i, item in enumerate(items):
            if item.prefix is not None:
                slots.setdefault(id(item.prefix), []).append(start + i)
                prefixes[id(item.prefix)] = item.prefix
        for key, prefix in prefixes.items():
            self._cache.write_prefix(slots[key], prefix)


def greedy_token(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(best token [B], gap between the best and the second log-probability [B])."""
    best = torch.topk(logits, 2, dim=-1)
    values = best.values.float()
    return best.indices[:, 0], values[:, 0] - values[:, 1]
