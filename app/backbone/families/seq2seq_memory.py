"""Keys and values of an encoder-decoder's rows in flight: one slot for each row, taken once.

A slot begins with what the decoder's layers made of the encoder's tokens, S_i places; the decoder's own tokens follow.
So one length bounds both together. A step looks at the first part where it lies, masked; the second part, which is
short, is gathered so that all rows end at the same place, which is where their newest token stands.

Shapes: L layers, N slots, G heads, S places, D head width; B rows of a step, Q places gathered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

from app.backbone.kv import KVShape, untouched_zeros


@dataclass(frozen=True)
class StepRows:
    """The rows of one decode step.

    slots    [B] int64     whole: they are slots 0 to B
    cross    [B] int64     places of the encoder's part; `width` is the longest
    gather   [B, Q] int64  places of the decoder's own tokens, the newest at the end
    own      [B, Q] bool   which of them are the row's
    """

    slots: Tensor
    whole: bool
    cross: Tensor
    width: int
    gather: Tensor
    own: Tensor

    @property
    def newest(self) -> Tensor:
        return self.gather[:, -1]


def step_rows(slots: list[int], cross: list[int], own: list[int], device: torch.device) -> StepRows:
    """The rows of a step, row i with `own[i]` tokens of its own before the newest."""
    longest = max(own)
    at = torch.tensor([slots, cross, own], device=device)  # [3, B]
    columns = torch.arange(longest + 1, device=device) - (longest - at[2])[:, None]  # [B, Q] index of the own token
    return StepRows(
        slots=at[0],
        whole=slots == list(range(len(slots))),
        cross=at[1],
        width=max(cross),
        gather=at[1][:, None] + columns.clamp(min=0),
        own=columns >= 0,
    )


class Seq2SeqMemory:
    """keys, values [L, N, G, S, D], taken with the first rows."""

    def __init__(self, *, layers: int, slots: int, places: int) -> None:
        self.layers, self.slots, self.places = layers, slots, places
        self.keys = self.values = torch.empty(0)

    @property
    def shape(self) -> KVShape | None:
        """What a token leaves in the decoder's layers; known after the first rows."""
        return KVShape(self.layers, self.keys.shape[2], self.keys.shape[4]) if self.keys.numel() else None

    def write(self, slot: int, at: int, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [L, G, n, D] at places `at` to `at + n` of a slot."""
        if not self.keys.numel():
            shape = (self.layers, self.slots, keys.shape[1], self.places, keys.shape[3])
            self.keys = untouched_zeros(shape, keys.dtype, keys.device)
            self.values = untouched_zeros(shape, keys.dtype, keys.device)
        stop = at + keys.shape[2]
        self.keys[:, slot, :, at:stop] = keys
        self.values[:, slot, :, at:stop] = values

    def move(self, source: int, target: int, length: int) -> None:
        if self.keys.numel():
            for memory in (self.keys, self.values):
                memory[:, target, :, :length] = memory[:, source, :, :length]

    def wipe(self, slot: int) -> None:
        """Zero a slot: a masked NaN still poisons."""
        if self.keys.numel():
            self.keys[:, slot].zero_()
            self.values[:, slot].zero_()

    def step_cache(self, rows: StepRows) -> EncoderDecoderCache:
        """The cache of one step: layers write each row's newest token and see what its slot holds."""
        layers = range(self.layers)
        return EncoderDecoderCache(
            Cache(layers=[_OwnLayer(self.keys[layer], self.values[layer], rows) for layer in layers]),
            Cache(layers=[_SourceLayer(self.keys[layer], self.values[layer], rows) for layer in layers]),
        )


class _OwnLayer(CacheLayerMixin):
    """The decoder's own tokens in one layer: memory [N, G, S, D]."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, rows: StepRows) -> None:
        super().__init__()
        self._keys, self._values, self._rows, self.is_initialized = keys, values, rows, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The memory is there."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write [B, G, 1, D] at each row's newest place; return what the rows see, [B, G, Q, D]."""
        rows = self._rows
        found = []
        for memory, states in ((self._keys, key_states), (self._values, value_states)):
            memory[rows.slots, :, rows.newest] = states[:, :, 0]
            found.append(memory[rows.slots[:, None], :, rows.gather].transpose(1, 2))
        return found[0], found[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._rows.gather.shape[1], 0

    def get_seq_length(self) -> int:
        return self._rows.gather.shape[1] - 1

    def get_max_length(self) -> int:
        return -1


class _SourceLayer(_OwnLayer):
    """What the encoder read, in one layer: nothing is added, and nothing is copied where the rows lie side by side."""

    def __init__(self, keys: Tensor, values: Tensor, rows: StepRows) -> None:
        super().__init__(keys, values, rows)
        at = slice(0, len(rows.slots)) if rows.whole else rows.slots
        self.keys, self.values = keys[at, :, : rows.width], values[at, :, : rows.width]

    def get_seq_length(self) -> int:
        return self._rows.width
