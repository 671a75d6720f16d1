"""New rows as a packed batch: their tokens one behind the other, nothing between them.

What a row need not compute is left out: the leading part whose keys and values its prompt has (`cached`), and the text
it shares with the row before it (`trunk`). Label words hang behind the row as branches, as in layout.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.backbone.decoder_steps import PackedRows, Span
from app.backbone.rows import Row
from app.backbone.transfer import to_device

Branches = Sequence[Sequence[int]]


@dataclass(frozen=True)
class PackedBatch:
    """ids [n] int64 as in `Layout`, virtual [n] bool; `ends` flat index of each row's last trunk token."""

    ids: Tensor
    virtual: Tensor
    rows: PackedRows
    ends: list[int]

    @property
    def tokens(self) -> int:
        return self.ids.shape[0]


def pack_rows(
    rows: Sequence[Row],
    *,
    start: int,
    cached: Sequence[int],
    trunks: Sequence[int],
    offsets: Sequence[int],
    branches: Sequence[Branches],
    device: torch.device,
) -> PackedBatch:
    """Pack rows for the slots from `start` on.

    Of row i, `cached[i]` leading tokens are in its prompt's keys and values, or `trunks[i]` are those of the last row
    before it that shares none; `offsets[i]` is where its prompt begins in the prompt table;
    `branches[i]` are token lists behind it.
    """
    ids: list[int] = []
    starts: list[int] = []
    pieces: list[np.ndarray] = []
    spans: list[Span] = []
    ends: list[int] = []
    leader = start
    for i, (row, trunk, of) in enumerate(zip(rows, trunks, branches, strict=True)):
        leader = leader if trunk else start + i
        first, skip = len(ids), trunk or cached[i]
        ids += row.ids[skip:]
        ends.append(len(ids) - 1)
        for branch in of:
            ids += branch
        starts += [offsets[i]] * (len(ids) - first)
        pieces.append(_describe(row.total, skip, [len(branch) for branch in of], start + i))
        spans.append(Span(first, len(ids) - first, start + i, trunk, leader))
    flat, table = np.asarray(ids, np.int64), np.asarray(starts, np.int64)
    virtual = flat < 0
    described = np.concatenate(pieces, axis=1)  # [6, n]
    shown = np.where(virtual, table - 1 - flat, flat)
    where, seen, tokens, marks = to_device(device, described[:3].T, described[3:].T, shown, virtual.astype(np.int64))
    return PackedBatch(ids=tokens, virtual=marks.bool(), rows=PackedRows(where, seen, spans), ends=ends)


def _describe(total: int, skip: int, branches: Sequence[int], slot: int) -> np.ndarray:
    """position, slot, place; upto, from, to of each token of one row.  [6, n] int64"""
    trunk = np.arange(skip, total)
    parts = [np.stack((trunk, np.full_like(trunk, slot), trunk, trunk + 1, 0 * trunk, 0 * trunk))]
    at = total
    for length in branches:
        steps = np.arange(length)
        same = np.ones_like(steps)
        parts.append(np.stack((total + steps, slot * same, at + steps, total * same, at * same, at + steps + 1)))
        at += length
    return np.concatenate(parts, axis=1)
