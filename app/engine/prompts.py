"""Prompts resident in the engine: their vectors on the device, and the keys and values of their leading part.

Vectors stay while a request needs them and are dropped least-recently-used beyond a count; keys and values live in an
LRU with a byte budget. A miss costs one prefill of the prompt's own tokens, never a read from disk. Keys of the cache
begin with the prompt's digest: the same words under two prompts have different keys and values.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

import torch
from torch import Tensor

from app.backbone.kv import PrefixKV

_MAX_RESIDENT = 16_384


class ResidentPrompts:
    """Vectors by digest, prefixes by (digest, length)."""

    def __init__(self, *, device: torch.device, dtype: torch.dtype, budget_bytes: int) -> None:
        self._device, self._dtype, self._budget = device, dtype, budget_bytes
        self._vectors: OrderedDict[str, Tensor] = OrderedDict()
        self._pins: Counter[str] = Counter()
        self._prefixes: OrderedDict[tuple[str, int], PrefixKV] = OrderedDict()
        self.prefix_bytes = self.hits = self.misses = self.evictions = 0

    def __len__(self) -> int:
        return len(self._vectors)

    def __contains__(self, digest: str) -> bool:
        return digest in self._vectors

    def load(self, digest: str, vectors: Tensor) -> None:
        """Make [P, H] resident in the serving dtype; a digest already there is only touched."""
        if digest not in self._vectors:
            self._vectors[digest] = vectors.to(self._device, self._dtype)
        self._vectors.move_to_end(digest)
        self._shrink()

    def release(self, digest: str) -> None:
        """Forget a prompt, unless a request still needs it."""
        if not self._pins[digest]:
            self._vectors.pop(digest, None)
            for key in [key for key in self._prefixes if key[0] == digest]:
                self.prefix_bytes -= self._prefixes.pop(key).size_bytes

    def pin(self, digest: str) -> None:
        if digest not in self._vectors:
            raise KeyError(digest)
        self._pins[digest] += 1

    def unpin(self, digest: str) -> None:
        self._pins[digest] -= 1
        if self._pins[digest] <= 0:
            del self._pins[digest]

    def vectors(self, digest: str) -> Tensor:
        return self._vectors[digest]

    def prefix(self, digest: str, length: int) -> PrefixKV | None:
        found = self._prefixes.get((digest, length))
        if found is None:
            self.misses += 1
            return None
        self._prefixes.move_to_end((digest, length))
        self.hits += 1
        return found

    def keep_prefix(self, digest: str, length: int, prefix: PrefixKV) -> None:
        """Cache keys and values; the oldest go first. One that alone exceeds the budget is not kept."""
        if (digest, length) in self._prefixes or prefix.size_bytes > self._budget:
            return
        self._prefixes[digest, length] = prefix
        self.prefix_bytes += prefix.size_bytes
        while self.prefix_bytes > self._budget:
            _, oldest = self._prefixes.popitem(last=False)
            self.prefix_bytes -= oldest.size_bytes
            self.evictions += 1

    def check_integrity(self) -> None:
        assert self.prefix_bytes == sum(prefix.size_bytes for prefix in self._prefixes.values()) <= self._budget
        assert all(digest in self._vectors for digest in self._pins)

    def _shrink(self) -> None:
        for digest in list(self._vectors):
            if len(self._vectors) <= _MAX_RESIDENT:
                return
            self.release(digest)
