"""Keys and values that rows are given to begin with, for a forward that keeps none: training and scoring.

Each row has one of M prefixes, or none. Every layer joins them before the keys and values of the row's own tokens, so
gradients flow back into the prefixes. Rows' own tokens all begin at place `width`, the longest prefix's end (the `base`
of `lay_out`); the places between a shorter prefix and that are nobody's and are masked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import Cache, CacheLayerMixin

from app.backbone.kv import PrefixKV


class _GivenLayer(CacheLayerMixin):
    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values  # [B, G, W, D]
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to wait for."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """[B, G, W + T, D] twice; what is kept stays as it was given."""
        assert self.keys is not None
        assert self.values is not None
        device = key_states.device  # a model may lie on several
        return torch.cat((self.keys.to(device), key_states), 2), torch.cat((self.values.to(device), value_states), 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        assert self.keys is not None
        return self.keys.shape[2]

    def get_max_length(self) -> int:
        return -1


def _rows(layer: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [B, G, W, D] of the rows, from those of the prefixes [2, M, G, W, D]."""
    if layer.shape[1] == 1:
        keys, values = layer.expand(-1, len(index), -1, -1, -1)
    else:
        keys, values = layer.index_select(1, index)
    return keys, values


class GivenPrefixes(Cache):
    """The prefixes of B rows: `lengths[i]` tokens of row i are given, `width` is the longest."""

    def __init__(self, prefixes: Sequence[PrefixKV | None], dtype: torch.dtype) -> None:
        distinct = list({id(prefix): prefix for prefix in prefixes if prefix is not None}.values())
        if not distinct:
            raise ValueError("no row is given a prefix")
        self.lengths = [0 if prefix is None else prefix.length for prefix in prefixes]
        self.width = max(self.lengths)
        padded = [F.pad(prefix.data.to(dtype), (0, 0, 0, self.width - prefix.length)) for prefix in distinct]
        if None in prefixes:  # zeros of their own: what is masked is multiplied all the same, and others' may be NaN
            padded.append(torch.zeros_like(padded[0]))
        table = torch.stack(padded, 2)  # [2, L, M, G, W, D]
        places = {id(prefix): place for place, prefix in enumerate(distinct)}
        index = torch.tensor([places.get(id(prefix), len(distinct)) for prefix in prefixes], device=table.device)
        super().__init__(layers=[_GivenLayer(*_rows(layer, index)) for layer in table.unbind(1)])

    def view(self, start: int, keys: int, target: Tensor) -> GivenPrefixes:
        """Itself: a batch has all of it, from slot 0."""
        return self
