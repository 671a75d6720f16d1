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
Run = tuple[int, int, int, int, int, int, int, int, int]
"""Tokens that follow one another in a row, the trunk or a branch: how many; of the first of them position, slot and
place, and `upto`; whether that grows from token to token; `from` and `to`; whether that grows."""


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
    runs: list[Run] = []
    spans: list[Span] = []
    ends: list[int] = []
    leader = start
    for i, (row, trunk, of) in enumerate(zip(rows, trunks, branches, strict=True)):
        leader = leader if trunk else start + i
        first, skip = len(ids), trunk or cached[i]
        ids += row.ids[skip:]
        ends.append(len(ids) - 1)
        total, slot = row.total, start + i
        runs.append((total - skip, skip, slot, skip, skip + 1, 1, 0, 0, 0))
        place = total
        for branch in of:
            ids += branch
            runs.append((len(branch), total, slot, place, total, 0, place, place + 1, 1))
            place += len(branch)
        starts += [offsets[i]] * (len(ids) - first)
        spans.append(Span(first, len(ids) - first, start + i, trunk, leader))
    flat, table = np.asarray(ids, np.int64), np.asarray(starts, np.int64)
    virtual = flat < 0
    places, sees = _describe(runs)
    shown = np.where(virtual, table - 1 - flat, flat)
    where, seen, tokens, marks = to_device(device, places, sees, shown, virtual.astype(np.int64))
    return PackedBatch(ids=tokens, virtual=marks.bool(), rows=PackedRows(where, seen, spans), ends=ends)


def _describe(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """position, slot, place, and upto, from, to of each token.  both [n, 3] int64"""
    table = np.asarray(runs, np.int64)
    counts = table[:, 0]
    of = np.repeat(table[:, 1:], counts, axis=0)  # [n, 8]
    step = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    position, slot, place, upto, grows, begin, end, branch = of.T
    places = np.stack((position + step, slot, place + step), 1)
    return places, np.stack((upto + grows * step, begin, end + branch * step), 1)
