"""Logits to tokens: pure, vectorised, and seeded for each row by a counter.

A row's random numbers depend on its seed and on how many tokens it has, on nothing else, so its answer does not change
with its neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def uniform(seeds: Tensor, steps: Tensor) -> Tensor:
    """A number in [0, 1) for each (seed, step), [B] float64: SplitMix64 (Steele et al. 2014) as a hash of a counter."""
    x = _mix(seeds * _GOLDEN + _GOLDEN) + steps * _GOLDEN
    bits = _shift(_mix(x), 11)  # 53 bits
    return bits.double() * 2.0**-53


def draw(logits: Tensor, temperature: Tensor, top_p: Tensor, top_k: Tensor, seeds: Tensor, steps: Tensor) -> Tensor:
    """One token per row, [B] int64, from logits [B, V] float32; all other arguments are [B], `temperature` above 0.

    The distribution at that temperature is cut to the `top_k` most likely tokens (0: all) and then to the smallest set
    whose probability reaches `top_p` (Holtzman et al. 2019), the most likely one always.
    """
    probs, order = (logits / temperature[:, None]).softmax(-1).sort(stable=True, dim=-1, descending=True)  # [B, V]
    rank = torch.arange(probs.shape[1], device=logits.device)
    limit = torch.where(top_k > 0, top_k, probs.shape[1])[:, None]
    probs = probs.masked_fill(rank >= limit, 0.0)
    probs = probs / probs.sum(-1, keepdim=True)
    before = probs.cumsum(-1) - probs
    probs = probs.masked_fill((before >= top_p[:, None]) & (rank > 0), 0.0)
    return order.gather(1, _invert(probs, seeds, steps)[:, None])[:, 0]


def draw_uncut(logits: Tensor, temperature: Tensor, seeds: Tensor, steps: Tensor) -> Tensor:
    """The same for rows that keep all tokens: nothing has to be sorted."""
    return _invert((logits / temperature[:, None]).softmax(-1), seeds, steps)


def mix(logits: Tensor, temperature: Tensor, groups: Tensor, sizes: Tensor) -> Tensor:
    """Logits [M, V] of the mean distribution of each row's group, to be sampled at the row's temperature.

    `temperature` [M], 0 counting as 1; `groups` [M] int64 numbers each row's group; `sizes` [G] counts their rows. The
    members' probabilities at that temperature are averaged, with equal weights.
    """
    scale = torch.where(temperature > 0, temperature, 1.0)[:, None]
    probs = (logits / scale).softmax(-1)
    total = torch.zeros(sizes.shape[0], probs.shape[1], device=probs.device).index_add(0, groups, probs)
    return (total / sizes[:, None]).log()[groups] * scale


def _invert(probs: Tensor, seeds: Tensor, steps: Tensor) -> Tensor:
    """The place [B] where each row's random number falls in the running sum of its weights [B, V]."""
    ladder = probs.double().cumsum(-1)
    target = uniform(seeds, steps)[:, None] * ladder[:, -1:]
    return torch.searchsorted(ladder, target, right=True)[:, 0].clamp(max=probs.shape[1] - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of signed 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
