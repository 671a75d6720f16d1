"""Matrix products with a frozen weight.

On the CPU the weight is laid out once for oneDNN, as torch's own compiler does when it freezes a model: on processors
with AVX-512 this is two to three times as fast as a plain product in float32, and most so for few rows (measured in
docs/results/engine.md). Where torch was built without oneDNN, and on other devices, it is a plain product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16)
_EXACT, _ROUND = 64, 16  # rows


@dataclass(frozen=True)
class FrozenLinear:
    """x [n, in] -> [n, out]. `weight` is [out, in], plain or laid out for oneDNN (`packed`)."""

    weight: Tensor
    bias: Tensor | None
    packed: bool

    def __call__(self, x: Tensor) -> Tensor:
        if not self.packed:
            return F.linear(x, self.weight, self.bias)
        n, full = x.shape[0], rounded(x.shape[0])
        if full != n and _has_room(x, full):
            x = x.as_strided((full, x.shape[1]), x.stride(), x.storage_offset())
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product[:n]


def rounded(n: int) -> int:
    """How many rows a product of n has: oneDNN compiles it for every number of rows anew (product_cache.py), and long
    batches have any. A few rows more, of whatever lies behind x, are cheaper; nobody looks at what becomes of them."""
    return n if n <= _EXACT else -(-n // _ROUND) * _ROUND


def room_for(n: int, width: int, like: Tensor) -> Tensor:
    """[n, width] in the dtype of `like`, not filled in, with the memory behind it that a product of n rows reads."""
    return like.new_empty(rounded(n), width)[:n]


def _has_room(x: Tensor, rows: int) -> bool:
    end = x.storage_offset() + rows * x.shape[1]
    return x.is_contiguous() and end * x.element_size() <= x.untyped_storage().nbytes()


def frozen_linear(weights: list[Tensor], biases: list[Tensor | None], *, pack: bool = True) -> FrozenLinear:
    """One product for several weights [out_i, in] with the same input; `pack` False keeps the plain layout.

    The packed weight is a copy; a single plain weight is shared.
    """
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    bias = None
    if any(one is not None for one in biases):
        parts = zip(weights, biases, strict=True)
        bias = torch.cat([w.new_zeros(w.shape[0]) if one is None else one for w, one in parts]).detach()
    weight = weight.detach()
    if pack and can_pack(weight):
        return FrozenLinear(torch.ops.mkldnn._reorder_linear_weight(weight), bias, packed=True)
    return FrozenLinear(weight, bias, packed=False)


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN takes this weight: on the CPU, in float32, or in bfloat16 where the processor computes in it."""
    if weight.device.type != "cpu" or weight.dtype not in _DTYPES or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype is torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
