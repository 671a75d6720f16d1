"""The runner over `Decoder`: packed prefill, and decode steps that build nothing but three small tensors.

A prompt's keys and values are read where they lie, once for all its rows; rows of a group that share a text read it in
the first row's slot. Steps that cannot do so (plain torch, a GPU) get copies in the rows' own slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from app.backbone.decoder import Decoder, Reads
from app.backbone.decoder_steps import PackedRows, Span
from app.backbone.graphs import StaticDecode, capture_for
from app.backbone.kv import PrefixKV
from app.backbone.layout import embed, stack_prompts
from app.backbone.native.steps import ROW_INFO
from app.backbone.packed_batch import pack_rows
from app.backbone.runner import Prefilled, PrefillItem
from app.backbone.score_plan import ScorePlan, plan_scores, word_branches


class PackedRunner:
    """One forward over rows of any prompts, lengths and templates, without padding."""

    name = "packed"
    packed = True

    def __init__(self, decoder: Decoder, *, slots: int, places: int, static: bool | None = None) -> None:
        """`static`: decode in steps of fixed shapes (graphs.py); None: on a GPU."""
        static = decoder.device.type == "cuda" if static is None else static
        if static and decoder.steps.shares_bases:
            raise ValueError("steps of fixed shapes need each row's keys and values in its own slot")
        self.slots, self.places = slots, places
        self._decoder = decoder
        self._memory = decoder.memory(slots=slots + static, places=places)
        capture = capture_for(decoder.device)
        self._static = StaticDecode(decoder, self._memory, slots=slots, capture=capture) if static else None
        self._bases: list[PrefixKV | None] = [None] * slots  # kept alive while a row reads them
        self._info = np.zeros(slots, ROW_INFO)  # of the running rows, for decode steps
        self._info["first"] = self._info["slot"] = np.arange(slots)
        self._info["count"] = 1
        self._rows = torch.arange(slots, device=decoder.device)
        self._seen = torch.zeros(slots, 3, dtype=torch.int64, device=decoder.device)

    def prefill(self, start: int, items: Sequence[PrefillItem]) -> Prefilled:
        items = _with_prefixes_of(self._memory.keys.dtype, items)
        cached = [min(item.prefix.length, item.row.total - 1) if item.prefix else 0 for item in items]
        trunks = _trunks(items, cached)
        table, offsets = stack_prompts(
            [_needed(item, trunk or had) for item, trunk, had in zip(items, trunks, cached, strict=True)]
        )
        batch = pack_rows(
            [item.row for item in items],
            start=start,
            cached=cached,
            trunks=trunks,
            offsets=offsets,
            branches=[word_branches(item.verbalizer) if item.verbalizer else [] for item in items],
            device=self._decoder.device,
        )
        info = self._place_bases(start, items, cached, batch.rows.spans)
        rows = PackedRows(batch.rows.places, batch.rows.seen, batch.rows.spans, info)
        plan = plan_scores(batch.ends, [item.verbalizer for item in items], self._decoder.device)
        embeds = embed(batch, self._decoder.embedding, table)
        logits = self._decoder.run(embeds, rows, self._memory, _only(rows, plan, batch.ends))
        self._part(items, batch.rows.spans)
        scored = iter(plan.label_scores(logits))
        return Prefilled(
            logits=logits if len(plan.reads) == len(items) else logits[plan.trunks],
            scores=[next(scored) if item.verbalizer else None for item in items],
            tokens=batch.tokens,
            padding=0,
        )

    def decode(self, tokens: Tensor, lengths: Tensor, longest: int) -> Tensor:
        if self._static is not None:
            return self._static(tokens, lengths, longest)
        count = tokens.shape[0]
        slots = self._rows[:count]
        self._seen[:count, 0] = lengths + 1
        spans = _Decoding(count) if self._decoder.steps.shares_bases else [Span(i, 1, i) for i in range(count)]
        rows = PackedRows(torch.stack((lengths, slots, lengths), 1), self._seen[:count], spans, self._info[:count])
        return self._decoder.run(self._decoder.embedding(tokens), rows, self._memory, None)

    def read_prefix(self, slot: int, length: int) -> PrefixKV | None:
        own, elsewhere = self._memory.read(slot, length), self._bases[slot]
        if elsewhere is not None:  # the first places lie there
            base = min(int(self._info["base"][slot]), length)
            own.data[..., :base, :] = elsewhere.data[..., :base, :]
        return own

    def move(self, source: int, target: int, length: int) -> None:
        self._memory.copy(source, target, int(self._info["base"][source]), length)
        self._info[target] = self._info[source]
        self._info["first"][target] = self._info["slot"][target] = target
        self._bases[target], self._bases[source] = self._bases[source], None

    def wipe(self, slot: int) -> None:
        self._memory.wipe(slot)
        self._set_base(slot, None, 0)

    def _place_bases(
        self, start: int, items: Sequence[PrefillItem], cached: Sequence[int], spans: Sequence[Span]
    ) -> np.ndarray:
        """Tell attention where each row's leading places lie; what the steps cannot share is copied."""
        shares = self._decoder.steps.shares_bases
        for slot, (item, length) in enumerate(zip(items, cached, strict=True), start):
            if not shares and length and item.prefix:
                self._memory.write(slot, item.prefix, length)
            self._set_base(slot, item.prefix if shares else None, length)
        info: np.ndarray = self._info[start : start + len(items)].copy()
        info["first"] = [span.first for span in spans]
        info["count"] = [span.count for span in spans]
        for row, span in zip(info, spans, strict=True):
            if span.trunk:
                row["base"], row["base_stride"] = span.trunk, self._memory.keys.stride(2)
                row["base_keys"], row["base_values"] = self._memory.addresses(span.leader)
                row["layer_bytes"] = self._memory.keys.stride(0) * self._memory.keys.element_size()
        return info

    def _part(self, items: Sequence[PrefillItem], spans: Sequence[Span]) -> None:
        """Rows that go on by themselves, or whose beginning may be read, get a copy of the text that they shared."""
        for item, span in zip(items, spans, strict=True):
            stays = item.verbalizer is None or item.row.prefix
            if span.trunk and stays and self._decoder.steps.shares_bases:
                self._memory.copy(span.leader, span.slot, 0, span.trunk)

    def _set_base(self, slot: int, prefix: PrefixKV | None, length: int) -> None:
        self._bases[slot] = prefix
        info = self._info[slot : slot + 1]
        info["base"] = length if prefix is not None else 0
        if prefix is not None:
            data = prefix.data
            info["base_stride"] = data.stride(2)
            info["base_keys"], info["base_values"] = data[0].data_ptr(), data[1].data_ptr()
            info["layer_bytes"] = data.stride(1) * data.element_size()


def _with_prefixes_of(dtype: torch.dtype, items: Sequence[PrefillItem]) -> Sequence[PrefillItem]:
    """Prefixes in the dtype of the slots, each distinct one cast once: compiled steps read the bare memory."""
    other = {id(item.prefix): item.prefix for item in items if item.prefix and item.prefix.data.dtype != dtype}
    if not other:
        return items
    cast = {key: PrefixKV(prefix.data.to(dtype).contiguous()) for key, prefix in other.items()}
    return [replace(item, prefix=cast.get(id(item.prefix), item.prefix)) for item in items]


def _trunks(items: Sequence[PrefillItem], cached: Sequence[int]) -> list[int]:
    """Leading ids that each row reads in the slot of the row that computes them. None where that row or the one itself
    has its beginning in its prompt's keys and values: they do not lie in a slot."""
    trunks: list[int] = []
    leader = 0
    for i, item in enumerate(items):
        apart = i == 0 or cached[i] or cached[leader]
        trunks.append(0 if apart else min(item.trunk, item.row.total - 1))
        leader = leader if trunks[i] else i
    return trunks


def _needed(item: PrefillItem, skip: int) -> Tensor | None:
    """The prompt's vectors, if any of them is still to be computed."""
    return item.prompt if any(index < 0 for index in item.row.ids[skip:]) else None


def _only(rows: PackedRows, plan: ScorePlan, ends: Sequence[int]) -> Reads:
    """The rows with the plan's tokens alone: of each row its last token, at `ends`, and the branches behind it."""
    counts = [span.first + span.count - end for span, end in zip(rows.spans, ends, strict=True)]
    firsts = [0, *accumulate(counts)]
    spans = [replace(span, first=first, count=n) for span, first, n in zip(rows.spans, firsts, counts, strict=False)]
    info = rows.info.copy()
    info["first"], info["count"] = firsts[:-1], counts
    return Reads(plan.reads, PackedRows(rows.places[plan.reads], rows.seen[plan.reads], spans, info))


class _Decoding(Sequence[Span]):
    """Rows of a decode step, made only if somebody looks."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Span:  # type: ignore[override]  # no slices here
        if index >= self._count:
            raise IndexError(index)
        return Span(index, 1, index)
