"""Keys and values of the rows in flight, in memory that is taken once: one slot for each row.

A row's first places may lie elsewhere, in its *base* (its prompt's keys and values, shared by all rows of the prompt);
its slot then holds the places behind them, at their own index.

Shapes: L layers, N slots, G key/value heads, S places, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from app.backbone.kv import PrefixKV, untouched_zeros


@dataclass(frozen=True)
class Heads:
    """Numbers of attention heads, and how they are turned by their position (rotary embeddings, Su et al. 2021).

    cos, sin [S, turned / 2] float32; `epsilon` is that of the heads' own norms, where there are any.
    """

    queries: int
    groups: int
    width: int
    scale: float
    cos: Tensor
    sin: Tensor
    epsilon: float = 0.0

    @property
    def repeat(self) -> int:
        return self.queries // self.groups


class SlotMemory:
    """keys, values [L, N, G, S, D]"""

    def __init__(
        self, heads: Heads, *, layers: int, slots: int, places: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (layers, slots, heads.groups, places, heads.width)
        self.heads, self.places = heads, places
        self.keys, self.values = untouched_zeros(shape, dtype, device), untouched_zeros(shape, dtype, device)
        self._addresses = [(k.data_ptr(), v.data_ptr()) for k, v in zip(self.keys, self.values, strict=True)]

    def layer_addresses(self, layer: int) -> tuple[int, int]:
        """Where a layer's keys and values begin in memory."""
        return self._addresses[layer]

    def write(self, slot: int, prefix: PrefixKV, length: int) -> None:
        """Copy the first `length` places of a prompt into a slot."""
        self.keys[:, slot, :, :length] = prefix.data[0, :, :, :length]
        self.values[:, slot, :, :length] = prefix.data[1, :, :, :length]

    def copy(self, source: int, target: int, start: int, stop: int, layer: int | None = None) -> None:
        """Copy places `start` to `stop` from slot to slot, in one layer or in all."""
        layers = slice(None) if layer is None else slice(layer, layer + 1)
        for memory in (self.keys, self.values):
            memory[layers, target, :, start:stop] = memory[layers, source, :, start:stop]

    def addresses(self, slot: int) -> tuple[int, int]:
        """Where a slot's keys and values begin in the first layer."""
        return self.keys[0, slot].data_ptr(), self.values[0, slot].data_ptr()

    def read(self, slot: int, length: int) -> PrefixKV:
        """A copy of a slot's first `length` places."""
        return PrefixKV(torch.stack((self.keys[:, slot, :, :length], self.values[:, slot, :, :length])))

    def wipe(self, slot: int) -> None:
        self.keys[:, slot].zero_()
        self.values[:, slot].zero_()
