"""Keys and values of the rows in flight, in memory that is taken once.

`SlotCache` is handed to transformers models as their cache. Each row owns a *slot*; a forward runs over a contiguous
range of slots, writes each token at the place its layout names, and attends to a view of the range: nothing grows and
nothing is gathered. Rows that go on decoding are kept at the front by moving the last one into a freed slot.

Shapes: N slots, G key/value heads, S places, D head width.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass(frozen=True)
class KVShape:
    """What one token leaves behind in the layers: L layers, G key/value heads, D head width."""

    layers: int
    groups: int
    width: int

    def prefix(self, length: int) -> tuple[int, int, int, int, int]:
        """Shape of the keys and values of `length` tokens: [2, L, G, P, D]."""
        return (2, self.layers, self.groups, length, self.width)


@dataclass(frozen=True)
class PrefixKV:
    """A prompt's keys and values, computed once, in one piece of memory: `data` [2, L, G, P, D], keys first."""

    data: Tensor

    @property
    def layers(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Per layer ([G, P, D], [G, P, D])."""
        return tuple(zip(*self.data.unbind(0), strict=True))

    @property
    def length(self) -> int:
        return self.data.shape[3]

    @property
    def size_bytes(self) -> int:
        return self.data.numel() * self.data.element_size()


class _Window:
    """The part of the cache that the current forward sees; set by `SlotCache.view`, read by every layer."""

    def __init__(self) -> None:
        self.start = 0
        self.keys = 0
        self.target = torch.empty(0, dtype=torch.int64)  # [B, T] place of each new token


class _SlotLayer(CacheLayerMixin):
    is_sliding = False

    def __init__(self, window: _Window, slots: int, places: int) -> None:
        super().__init__()
        self.window, self.slots, self.places = window, slots, places

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the memory: one place more than asked, where padding goes."""
        for name, states in (("keys", key_states), ("values", value_states)):
            shape = (self.slots, states.shape[1], self.places + 1, states.shape[3])
            setattr(self, name, untouched_zeros(shape, states.dtype, states.device))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write [B, G, T, D] at the window's places; return views [B, G, S, D]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        window = self.window
        rows = slice(window.start, window.start + key_states.shape[0])
        place = window.target.to(key_states.device)[:, None, :, None]  # a model may lie on several devices
        self.keys[rows].scatter_(2, place.expand_as(key_states), key_states)
        self.values[rows].scatter_(2, place.expand_as(value_states), value_states)
        return self.keys[rows, :, : window.keys], self.values[rows, :, : window.keys]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.window.keys, 0

    def get_seq_length(self) -> int:
        return self.window.keys

    def get_max_length(self) -> int:
        return self.places


class SlotCache(Cache):
    """The cache of `slots` rows of up to `places` tokens each."""

    def __init__(self, layers: int, *, slots: int, places: int) -> None:
        self.window = _Window()
        self.slots, self.places = slots, places
        super().__init__(layers=[_SlotLayer(self.window, slots, places) for _ in range(layers)])

    def view(self, start: int, keys: int, target: Tensor) -> SlotCache:
        """Aim the next forward at slots `start`…, their first `keys` places; -1 in `target` [B, T] is padding."""
        self.window.start, self.window.keys = start, keys
        self.window.target = torch.where(target < 0, self.places, target)
        return self

    def write_prefix(self, slots: list[int], prefix: PrefixKV) -> None:
        """Copy a prompt's keys and values to the first places of each slot."""
        index = torch.tensor(slots)
        for layer, (keys, values) in zip(self.layers, prefix.layers, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys[None], values[None])
            layer.keys[index, :, : prefix.length] = keys.to(layer.keys.device)
            layer.values[index, :, : prefix.length] = values.to(layer.keys.device)

    @property
    def shape(self) -> KVShape | None:
        """None before the first forward, and where the layers differ: no prefix can be given to such a model."""
        shapes = {(layer.keys.shape[1], layer.keys.shape[3]) for layer in self.layers if layer.is_initialized}
        return KVShape(len(self.layers), *shapes.pop()) if len(shapes) == 1 else None

    def read_prefix(self, slot: int, length: int) -> PrefixKV:
        """A copy of a slot's first `length` keys and values."""
        device = self.layers[0].keys.device
        keys = torch.stack([layer.keys[slot, :, :length].to(device) for layer in self.layers])
        values = torch.stack([layer.values[slot, :, :length].to(device) for layer in self.layers])
        return PrefixKV(torch.stack((keys, values)))

    def move(self, source: int, target: int, length: int) -> None:
        for layer in self.layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]

    def copy(self, source: int, targets: list[int], length: int) -> None:
        """Copy a slot's first `length` places to other slots."""
        index = torch.tensor(targets)
        for layer in self.layers:
            layer.keys[index, :, :length] = layer.keys[source, :, :length]
            layer.values[index, :, :length] = layer.values[source, :, :length]

    def wipe(self, slot: int) -> None:
        """Zero a slot. A masked NaN still poisons (0 x NaN is NaN), so a failed row's values must not stay."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys[slot].zero_()
                layer.values[slot].zero_()


def untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros whose memory, on the CPU, becomes real page by page as it is written: it comes from the system itself,
    untouched; torch's are filled in. Slots are as long as the longest row may be, and most rows are short. How much
    stays unreal depends on the pages: huge ones (2 MiB) are asked for, and where the system grants them, one written
    place makes all of its page real, so that slots shorter than a page are whole once a row has been in them."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size == 0:
        return torch.zeros(shape, dtype=dtype, device=device)
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # begins with a page, so with a cache line
    with suppress(OSError, AttributeError):
        room.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(room, dtype=dtype).view(shape)
