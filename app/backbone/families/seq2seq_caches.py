"""What an encoder-decoder's layers are handed as their cache, for a pass over whole rows.

A decoder layer keeps two sets of keys and values: its own tokens', and those it makes of what the encoder read. Here
the encoder's rows and the decoder's differ in number (several words are tried behind one text), and either set may
begin with keys and values that a prompt gives.

Shapes: B encoder rows, W decoder rows, G heads, S encoder tokens, T decoder tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

from app.backbone.kv import PrefixKV


class DecoderLayer(CacheLayerMixin):
    """Joins given keys and values [W, G, P, D] before a layer's new ones and remembers the whole."""

    is_sliding = False

    def __init__(self, given: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self._given, self.is_initialized = given, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to make room for."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if self._given is not None:
            key_states, value_states = self._join(key_states, value_states, *self._given)
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def _join(self, keys: Tensor, values: Tensor, before: Tensor, before_values: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat((before, keys), 2), torch.cat((before_values, values), 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return 0 if self._given is None else self._given[0].shape[2]

    def get_max_length(self) -> int:
        return -1


class CrossLayer(DecoderLayer):
    """The same for what the encoder read, [B, G, S, D], given out to each decoder row that reads it: [W, G, P + S, D]
    with `sources` [W], the encoder row of each decoder row."""

    def __init__(self, sources: Tensor | None, given: tuple[Tensor, Tensor] | None) -> None:
        super().__init__(given)
        self._sources = sources

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if self._sources is not None:
            key_states = key_states.index_select(0, self._sources)
            value_states = value_states.index_select(0, self._sources)
        return super().update(key_states, value_states)

    def get_seq_length(self) -> int:
        return 0  # a layer that has some would not ask for the encoder's


def pass_cache(
    layers: int, own: Sequence[PrefixKV] | None, cross: Sequence[PrefixKV] | None, sources: Tensor | None
) -> EncoderDecoderCache:
    """The cache of one pass. `own`, `cross`: of each decoder row, all of one length."""
    of_own, of_cross = _by_layer(own, layers), _by_layer(cross, layers)
    return EncoderDecoderCache(
        Cache(layers=[DecoderLayer(given) for given in of_own]),
        Cache(layers=[CrossLayer(sources, given) for given in of_cross]),
    )


def _by_layer(given: Sequence[PrefixKV] | None, layers: int) -> Sequence[tuple[Tensor, Tensor] | None]:
    if given is None:
        return [None] * layers
    distinct = list({id(prefix): prefix.data for prefix in given}.values())
    places = {key: place for place, key in enumerate(dict.fromkeys(map(id, given)))}
    table = torch.stack(distinct, 2)  # [2, L, M, G, P, D]
    index = torch.tensor([places[id(prefix)] for prefix in given], device=table.device)
    rows = table.expand(-1, -1, len(given), -1, -1, -1) if len(distinct) == 1 else table.index_select(2, index)
    return [(layer[0], layer[1]) for layer in rows.unbind(1)]
