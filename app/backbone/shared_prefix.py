"""Leading tokens that rows have in common, computed once for all of them, with gradients.

The rows of a training batch begin with the same vectors, and what a causal model makes of leading tokens does not
depend on what follows. So their keys and values are computed in one small forward and given to every row
(`GivenPrefixes`); the gradients of all rows meet in them and go back through that forward once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from app.backbone.backbone import Backbone
from app.backbone.kv import PrefixKV
from app.backbone.layout import embed, lay_out, stack_prompts
from app.backbone.rows import Row
from app.backbone.soft_prompt import SoftPrompt

_Key = tuple[int, tuple[int, ...]]  # the vectors' identity, the leading ids


@dataclass(frozen=True)
class SharedPrefixes:
    """Keys and values of leading tokens, by the vectors and the ids they come from."""

    found: dict[_Key, PrefixKV] = field(default_factory=dict)
    vectors: tuple[Tensor, ...] = ()  # kept alive: an identity must stay somebody's

    def of(self, row: Row, prompt: SoftPrompt | None) -> PrefixKV | None:
        """What this row begins with, if it was computed. A row that is nothing but its prefix has to be computed
        itself: somebody wants to know what follows its last token."""
        if not self.found or row.prefix >= row.total:
            return None
        return self.found.get((id(prompt), row.ids[: row.prefix]))


def share_prefixes(
    backbone: Backbone, rows: Sequence[Row], prompts: Sequence[SoftPrompt | None], *, least: int = 2
) -> SharedPrefixes:
    """Compute what at least `least` rows begin with, differentiable in the prompts' vectors; all in one forward.

    Nothing is shared where the backbone cannot be given keys and values, or where a row has nothing but its prefix.
    """
    if backbone.probed.forward is None or backbone.kv_shape is None:
        return SharedPrefixes()
    owners: dict[int, Tensor] = {}
    counts: Counter[_Key] = Counter()
    for row, prompt in zip(rows, prompts, strict=True):
        if isinstance(prompt, Tensor) and 0 < row.prefix < row.total:
            owners[id(prompt)] = prompt
            counts[id(prompt), row.ids[: row.prefix]] += 1
    keys = [key for key, count in counts.items() if count >= least]
    if not keys:
        return SharedPrefixes()
    vectors = tuple(owners[owner] for owner, _ in keys)
    found = _compute(backbone, [Row(ids) for _, ids in keys], vectors)
    return SharedPrefixes(dict(zip(keys, found, strict=True)), vectors)


def _compute(backbone: Backbone, rows: Sequence[Row], vectors: Sequence[Tensor]) -> list[PrefixKV]:
    table, offsets = stack_prompts(vectors)
    layout = lay_out(rows, offsets=offsets, device=backbone.device)
    assert backbone.kv_shape is not None
    kept = _Kept(backbone.kv_shape.layers)
    backbone.forward.fill(embed(layout, backbone.embedding, table), layout, kept)
    device = backbone.device  # a model may lie on several
    keys = torch.stack([layer.keys.to(device) for layer in kept.layers])  # [L, M, G, P, D]
    values = torch.stack([layer.values.to(device) for layer in kept.layers])
    both = torch.stack((keys, values))
    return [PrefixKV(both[:, :, i, :, : row.total]) for i, row in enumerate(rows)]


class _KeptLayer(CacheLayerMixin):
    """Keeps the one forward's keys and values as they are, with what they were computed from."""

    is_sliding = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to make room for."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.keys, self.values = key_states, value_states  # [M, G, P, D]
        self.is_initialized = True
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class _Kept(Cache):
    def __init__(self, layers: int) -> None:
        super().__init__(layers=[_KeptLayer() for _ in range(layers)])
