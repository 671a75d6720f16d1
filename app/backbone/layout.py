"""Rows as tensors: the one place where ids, positions and masks of a batch are laid out, and the one function that
applies prompts (`embed`). Training and serving both come through here, so what was trained is what is served.

Rows are right-padded. A row's tokens form a *trunk* and, behind it, *branches* that continue the trunk independently
(the words of a label set). Each token has a place in storage (its index in the row) and a position (what the model is
told): branches all continue at the trunk's end, so their positions overlap while their storage does not.

Shapes: B rows, T tokens laid out, S = keys seen, P prompt vectors, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from app.backbone.rows import Row


class Tokens(Protocol):
    """Token ids, and where they index the batch's prompt table instead of the vocabulary; of any shape."""

    @property
    def ids(self) -> Tensor: ...
    @property
    def virtual(self) -> Tensor: ...


PAD = -1  # segment of padding; the trunk is segment 0, branches are 1, 2, …


@dataclass(frozen=True)
class Layout:
    """One batch, ready for the model.

    ids        [B, T] int64   text ids; at virtual tokens the index into the batch's prompt table, see `virtual`
    virtual    [B, T] bool    where `ids` index the prompt table
    positions  [B, T] int64
    storage    [B, T] int64   place of each token's key and value in its row; -1 for padding
    segments   [B, T] int64   PAD, 0 for the trunk, b for branch b
    cached     [B]    int64   tokens of the row that are already in the cache and not laid out here
    ends       [B]    int64   column of the trunk's last token
    """

    ids: Tensor
    virtual: Tensor
    positions: Tensor
    storage: Tensor
    segments: Tensor
    cached: Tensor
    ends: Tensor
    tokens: int  # laid out, padding not counted
    keys: int  # places of the longest row, cached tokens included

    @property
    def rows(self) -> int:
        return self.ids.shape[0]

    @property
    def width(self) -> int:
        return self.ids.shape[1]

    @property
    def flat_ends(self) -> list[int]:
        """`ends` as flat indices into [B, T]."""
        return [i * self.width + end for i, end in enumerate(self.ends.tolist())]


def lay_out(
    rows: Sequence[Row],
    *,
    offsets: Sequence[int],
    cached: Sequence[int] | None = None,
    branches: Sequence[Sequence[Sequence[int]]] | None = None,
    base: int | None = None,
    device: torch.device | None = None,
) -> Layout:
    """Lay out rows.

    `offsets[i]` is where row i's prompt begins in the batch's prompt table; `cached[i]` leading tokens are left out
    because their keys and values are in the cache; `branches[i]` are token lists behind row i's trunk. `base` is where
    the storage of all rows begins, if not each behind its own cached tokens; places between are nobody's.
    """
    count = len(rows)
    cached = cached if cached is not None else [0] * count
    branches = branches if branches is not None else [()] * count
    widths = [row.total - skip + sum(map(len, of)) for row, skip, of in zip(rows, cached, branches, strict=True)]
    width = max(widths)
    ids = np.zeros((count, width), np.int64)
    positions = np.zeros((count, width), np.int64)
    segments = np.full((count, width), PAD, np.int64)
    for i, (row, skip, of) in enumerate(zip(rows, cached, branches, strict=True)):
        trunk = row.total - skip
        ids[i, :trunk] = row.ids[skip:]
        positions[i, :trunk] = np.arange(skip, row.total)
        segments[i, :trunk] = 0
        at = trunk
        for b, branch in enumerate(of, start=1):
            stop = at + len(branch)
            ids[i, at:stop] = branch
            positions[i, at:stop] = np.arange(row.total, row.total + len(branch))
            segments[i, at:stop] = b
            at = stop
    skipped = np.asarray(cached, np.int64)
    virtual = ids < 0
    ids = np.where(virtual, np.asarray(offsets, np.int64)[:, None] - 1 - ids, ids)
    storage = np.where(segments == PAD, -1, (skipped[:, None] if base is None else base) + np.arange(width))
    ends = np.asarray([row.total - skip - 1 for row, skip in zip(rows, cached, strict=True)], np.int64)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Layout(
        ids=tensor(ids),
        virtual=tensor(virtual),
        positions=tensor(positions),
        storage=tensor(storage),
        segments=tensor(segments),
        cached=tensor(skipped),
        ends=tensor(ends),
        tokens=sum(widths),
        keys=max((skip if base is None else base) + width for skip, width in zip(cached, widths, strict=True)),
    )


def stack_prompts(prompts: Sequence[Tensor | None]) -> tuple[Tensor | None, list[int]]:
    """One table of all distinct prompts, [sum P, H], and where each row's prompt begins in it."""
    starts: dict[int, int] = {}
    tables: list[Tensor] = []
    used = 0
    offsets = []
    for prompt in prompts:
        if prompt is None:
            offsets.append(0)
            continue
        if id(prompt) not in starts:
            starts[id(prompt)] = used
            tables.append(prompt)
            used += prompt.shape[0]
        offsets.append(starts[id(prompt)])
    return (torch.cat(tables) if tables else None), offsets


def embed(layout: Tokens, embedding: torch.nn.Module, table: Tensor | None) -> Tensor:
    """The function that applies prompts: word embeddings, with the prompts' vectors at their slots.  [B, T, H]

    Differentiable in `table`. Word embeddings are taken as the model's own embedding module gives them, so a stored
    prompt stands before whatever scaling the model's forward applies, as PEFT's prompts do.
    """
    words = embedding(layout.ids.masked_fill(layout.virtual, 0))  # [B, T, H]
    if table is None:
        return words
    flat = layout.virtual.reshape(-1).nonzero(as_tuple=True)[0]
    vectors = table.to(words.dtype)[layout.ids.reshape(-1)[flat]]
    return words.reshape(-1, words.shape[-1]).index_copy(0, flat, vectors).view_as(words)


def attention_mask(layout: Layout, keys: int, *, window: int | None = None) -> Tensor:
    """Which keys each token sees: what lies before it in its own row, on the trunk or on its own branch.
    [B, 1, T, S] bool

    A padding token sees the row's first key alone, so that no softmax is ever over nothing. `window` limits how far
    back a token sees, in positions (sliding-window attention).
    """
    device = layout.ids.device
    places = torch.arange(keys, device=device)
    real = layout.segments != PAD
    target = torch.where(real, layout.storage, keys)  # padding lands in a column of its own, cut off below
    key_segments = torch.full((layout.rows, keys + 1), PAD, dtype=torch.int64, device=device)
    key_segments[:, :keys].masked_fill_(places < layout.cached[:, None], 0)
    key_segments = key_segments.scatter_(1, target, layout.segments)[:, None, :keys]  # [B, 1, S]
    query = layout.segments[:, :, None]  # [B, T, 1]
    seen = (key_segments == 0) | (key_segments == query)
    seen &= (places <= layout.storage[:, :, None]) & (key_segments != PAD)
    if window is not None:
        key_positions = torch.arange(keys + 1, device=device).repeat(layout.rows, 1)
        key_positions = key_positions.scatter_(1, target, layout.positions)[:, None, :keys]
        seen &= layout.positions[:, :, None] - key_positions < window
    return torch.where(query == PAD, places == 0, seen)[:, None]
