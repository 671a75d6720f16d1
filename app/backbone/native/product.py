"""Products with a bfloat16 weight in its plain layout, at the speed of one laid out for oneDNN.

For an output weight that is also the word embedding: rows can still be looked up in it, and no second copy stands in
memory. Needs a processor that multiplies bfloat16 (AVX512-BF16).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from app.backbone.native.build import load

_PAIRS = 32  # inputs are read in whole vectors
_pointer, _int = ctypes.c_void_p, ctypes.c_int64


@dataclass(frozen=True)
class SharedLinear:
    """x [n, in] bfloat16 -> [n, out]; `weight` [out, in] is shared, not copied."""

    weight: Tensor
    library: ctypes.CDLL
    packed: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = x.new_empty(x.shape[0], self.weight.shape[0])
        self.library.product(x.data_ptr(), self.weight.data_ptr(), out.data_ptr(), x.shape[0], *self.weight.shape[::-1])
        return out


def shared_linear(weight: Tensor) -> SharedLinear | None:
    """The product with `weight`, or None where the compiled one cannot serve: other dtypes, devices and processors."""
    usable = weight.device.type == "cpu" and weight.dtype is torch.bfloat16 and weight.is_contiguous()
    if not usable or weight.shape[1] % _PAIRS:
        return None
    library = load(weight.dtype)
    if library is None or not library.has_product():
        return None
    library.product.argtypes, library.product.restype = [*[_pointer] * 3, *[_int] * 3], None
    return SharedLinear(weight.detach(), library)
