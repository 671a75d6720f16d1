"""The steps of a Llama-shaped decoder between its matrix products, and what a packed batch tells them.

`TorchSteps` is the plain form, for every device and dtype, and the one the compiled form (native/steps.py) is held to.

Shapes: n tokens of all rows, packed one behind the other; R rows; H query heads, G key/value heads, D head width,
W hidden width, F feed-forward width, S places of a slot, N slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from app.backbone.slot_memory import SlotMemory
from app.backbone.transfer import to_device


@dataclass(frozen=True)
class Span:
    """A row of the batch: tokens `first` to `first + count`, in `slot`. Its first `trunk` places are those of the row
    in slot `leader`, computed in this very batch."""

    first: int
    count: int
    slot: int
    trunk: int = 0
    leader: int = -1


@dataclass(frozen=True)
class PackedRows:
    """Where each token stands and what it sees.

    places [n, 3] int64   position, slot, place in the slot
    seen   [n, 3] int64   `upto`, `from`, `to`: places 0 to upto, and from to `to` (its own branch; 0, 0 if none)
    spans                 the rows
    info                  the rows as the compiled form reads them, see native/steps.py
    """

    places: Tensor
    seen: Tensor
    spans: Sequence[Span]
    info: Any = None

    @cached_property
    def rectangles(self) -> list[Rectangle]:
        """The rows as plain torch reads them; made once for all layers, with one look at what the device holds."""
        ends = self.seen[:, (0, 2)].amax(1).tolist()
        return [
            _rectangle(part, max(max(ends[s.first : s.first + s.count]) for s in part), self.seen)
            for part in _alike(self.spans)
        ]


@dataclass(frozen=True)
class Rectangle:
    """Rows of similar length, filled up to the longest.

    tokens [R, T] int64     index of each token; those that only fill up are the row's first
    slots  [R]    int64
    real   [m]    int64     the tokens that do not fill up, and
    cells  [m]    int64     where in [R T] they are
    mask   [R, 1, T, S] bool, over the first `keys` places
    """

    tokens: Tensor
    slots: Tensor
    real: Tensor
    cells: Tensor
    mask: Tensor
    keys: int


class DecoderSteps(Protocol):
    name: str
    shares_bases: bool  # reads what rows share where it lies; otherwise it is copied into their slots

    def add_rmsnorm(self, x: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
        """x += delta in place, then x / rms(x) * weight.  [n, W]"""
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up from both beside each other, [n, 2 F].  [n, F]"""
        ...

    def place(self, qkv: Tensor, rows: PackedRows, norms: Norms, memory: SlotMemory, layer: int) -> None:
        """Turn queries and keys of qkv [n, (H + 2 G) D] by their positions, in place; write keys and values. It may
        come without queries, [n, 2 G D]."""
        ...

    def attend(self, qkv: Tensor, rows: PackedRows, memory: SlotMemory, layer: int) -> Tensor:
        """Attention of the queries in `qkv` over what they see.  [n, H D]"""
        ...


Norms = tuple[Tensor | None, Tensor | None]  # weights [D] float32 of the query and key norms


class TorchSteps:
    """Plain torch: pads rows to a rectangle for attention, with a mask."""

    name = "torch"
    shares_bases = False

    def add_rmsnorm(self, x: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
        if delta is not None:
            x += delta
        return _rms_norm(x, weight, epsilon)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def place(self, qkv: Tensor, rows: PackedRows, norms: Norms, memory: SlotMemory, layer: int) -> None:
        heads = memory.heads
        parts = qkv.view(qkv.shape[0], -1, heads.width)
        query, key, value = parts.tensor_split((-2 * heads.groups, -heads.groups), dim=1)  # [n, ., D]
        cos, sin = heads.cos[rows.places[:, 0]][:, None], heads.sin[rows.places[:, 0]][:, None]  # [n, 1, turned / 2]
        for part, norm in ((query, norms[0]), (key, norms[1])):
            if norm is not None:
                part.copy_(_rms_norm(part, norm, heads.epsilon))
            half = cos.shape[-1]
            a, b = part[..., :half].float(), part[..., half : 2 * half].float()
            part[..., : 2 * half] = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        memory.keys[layer][rows.places[:, 1], :, rows.places[:, 2]] = key
        memory.values[layer][rows.places[:, 1], :, rows.places[:, 2]] = value

    def attend(self, qkv: Tensor, rows: PackedRows, memory: SlotMemory, layer: int) -> Tensor:
        n, heads = qkv.shape[0], memory.heads
        for span in rows.spans:
            if span.trunk:
                memory.copy(span.leader, span.slot, 0, span.trunk, layer)
        query = qkv.view(n, -1, heads.width)[:, : heads.queries]  # [n, H, D]
        out = torch.empty_like(query)
        for part in rows.rectangles:
            keys = memory.keys[layer][part.slots, :, : part.keys]  # [R, G, S, D]
            values = memory.values[layer][part.slots, :, : part.keys]
            grouped = query[part.tokens].unflatten(2, (heads.groups, heads.repeat)).permute(0, 2, 3, 1, 4)
            shape = grouped.shape  # [R, G, r, T, D]
            answer = F.scaled_dot_product_attention(
                grouped.flatten(2, 3),
                keys,
                values,
                attn_mask=part.mask.repeat(1, 1, heads.repeat, 1),
                scale=heads.scale,
            )
            answer = answer.view(shape).permute(0, 3, 1, 2, 4).flatten(2, 3)  # [R, T, H, D]
            out[part.real] = answer.flatten(0, 1)[part.cells]
        return out.view(n, -1)


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon) * weight).to(x.dtype)


def _rectangle(part: Sequence[Span], keys: int, seen: Tensor) -> Rectangle:
    first, count, slots = (np.array(each) for each in zip(*((s.first, s.count, s.slot) for s in part), strict=True))
    column = np.arange(count[0])  # the first row is the longest
    inside = column < count[:, None]  # [R, T]
    tokens = np.where(inside, first[:, None] + column, first[:, None])
    numbers = tokens, slots, tokens[inside], np.flatnonzero(inside), np.arange(keys)
    at, where, real, cells, places = to_device(seen.device, *numbers)
    of = seen[at]  # [R, T, 3]
    mask = (places < of[..., :1]) | ((places >= of[..., 1:2]) & (places < of[..., 2:]))  # [R, T, S]
    return Rectangle(tokens=at, slots=where, real=real, cells=cells, mask=mask[:, None], keys=keys)


def _alike(spans: Sequence[Span]) -> list[list[Span]]:
    """Rows of similar length together, longest first, so that little of a rectangle is padding."""
    parts: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: -span.count):
        if not parts or span.count < 0.75 * parts[-1][0].count - 4:
            parts.append([])
        parts[-1].append(span)
    return parts
