"""The first run of rows: prompts' keys and values fetched or computed once, labels scored, fresh prefixes kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from app.backbone.greedy import finite_rows
from app.backbone.kv import PrefixKV
from app.backbone.rows import Row
from app.backbone.runner import PrefillItem, Runner
from app.backbone.soft_prompt import EncoderDecoderPrompt
from app.engine.groups import WORTH_A_PASS, Sequence
from app.engine.isolation import IsolatingRunner
from app.engine.prompts import PrefixKey, ResidentPrompts
from app.engine.scheduler import Batch


@dataclass(frozen=True)
class Started:
    """Per row of the batch: `logits` [n, V] after its last token, label `scores` or None, and whether all its numbers
    are finite. `tokens` were computed for rows, `padding` only to fill the batch up."""

    logits: Tensor
    scores: list[tuple[float, ...] | None]
    finite: list[bool]
    tokens: int
    padding: int


class Prefiller:
    """Turns a batch of new rows into runner calls."""

    def __init__(self, isolating: IsolatingRunner, runner: Runner, prompts: ResidentPrompts) -> None:
        self._isolating, self._runner, self._prompts = isolating, runner, prompts
        self._reads = True  # until the runner shows that it cannot

    def run(self, batch: Batch) -> Started:
        rows = batch.sequences
        keys = [_prefix_key(row) for row in rows]
        found = {key: self._prompts.prefix(*key) for key in keys if key is not None}
        spent = self._run_cold_prefixes(batch.start, keys, found)
        groups = [row.group if row.group in batch.sharing else None for row in rows]
        items = [
            self._item(row, found[key] if key is not None else None, beside=group is not None and group is before)
            for row, key, group, before in zip(rows, keys, groups, (None, *groups), strict=False)
        ]
        done = self._isolating.prefill(batch.start, items)
        scores = _numbers(done.scores)
        finite = [
            ok and not (of is not None and any(map(math.isnan, of)))
            for ok, of in zip(finite_rows(done.logits).tolist(), scores, strict=True)
        ]
        self._keep_prefixes(
            {key: row.slot for row, key, ok in zip(rows, keys, finite, strict=True) if ok and key}, found
        )
        return Started(done.logits, scores, finite, done.tokens + spent[0], done.padding + spent[1])

    def _item(self, row: Sequence, prefix: PrefixKV | None, *, beside: bool) -> PrefillItem:
        """`beside`: the row before it is of its group, and what they have in common is computed once."""
        asked = row.row
        learned = self._prompts.learned(asked.digest) if asked.digest is not None else None
        return PrefillItem(
            asked.row,
            self._prompts.vectors(asked.digest) if asked.digest is not None else None,
            prefix,
            asked.verbalizer,
            trunk=row.group.request.shared if beside else 0,
            decoder=learned if isinstance(learned, EncoderDecoderPrompt) else None,
        )

    def _run_cold_prefixes(
        self, start: int, keys: Iterable[PrefixKey | None], found: dict[PrefixKey, PrefixKV | None]
    ) -> tuple[int, int]:
        """Compute prefixes that several rows of the batch miss, once for all of them, in the slots the rows will take.
        Returns the tokens that took, and the padding."""
        cold = Counter(key for key in keys if key is not None and found[key] is None)
        shared = [key for key, rows in cold.items() if rows > 1]
        if not self._reads or sum(len(key[1]) * (cold[key] - 1) for key in shared) < WORTH_A_PASS:
            return 0, 0
        items = [PrefillItem(Row(key[1]), self._prompts.vectors(key[0])) for key in shared]
        done = self._isolating.prefill(start, items)
        for slot, (key, ok) in enumerate(zip(shared, finite_rows(done.logits).tolist(), strict=True), start):
            if ok:
                found[key] = self._read(slot, key)
            else:
                self._runner.wipe(slot)
        return done.tokens, done.padding

    def _keep_prefixes(self, slots: Mapping[PrefixKey, int], found: Mapping[PrefixKey, PrefixKV | None]) -> None:
        """Cache what was computed in passing in these slots, for all rows to come; all numbers in them are finite."""
        for key, slot in slots.items():
            if _lacks(found[key], key) and self._reads and self._prompts.wants_prefix(*key):
                self._read(slot, key)

    def _read(self, slot: int, key: PrefixKey) -> PrefixKV | None:
        prefix = self._runner.read_prefix(slot, len(key[1]))
        self._reads = prefix is not None
        if prefix is not None:
            self._prompts.keep_prefix(*key, prefix)
        return prefix


def _prefix_key(row: Sequence) -> PrefixKey | None:
    """What a row's leading keys and values are cached by; None for rows that begin with text."""
    digest, asked = row.row.digest, row.row.row
    return (digest, asked.ids[: asked.prefix]) if digest is not None and asked.prefix else None


def _lacks(found: PrefixKV | None, key: PrefixKey) -> bool:
    """Whether there is more to keep: nothing was found, or what was learned as keys and values, without the words."""
    return found is None or found.length < len(key[1])


def _numbers(scores: list[Tensor | None]) -> list[tuple[float, ...] | None]:
    """The same on the host, in one transfer."""
    real = [of for of in scores if of is not None]
    flat = iter(torch.cat(real).tolist() if real else ())
    return [None if of is None else tuple(islice(flat, len(of))) for of in scores]
