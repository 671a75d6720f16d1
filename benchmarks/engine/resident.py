"""How much of a tensor's memory is real: pages that the system has backed, as `mincore` counts them."""

from __future__ import annotations

import ctypes
import mmap
import os
from itertools import chain
from typing import Any

from torch import Tensor


def resident_bytes(tensor: Tensor) -> int:
    """Bytes of the tensor's storage that lie in real pages: 4 KiB each, or the whole 2 MiB where the system made a
    huge page of them. Raises OSError where the system does not say."""
    storage = tensor.untyped_storage()
    begin, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    first = begin // mmap.PAGESIZE * mmap.PAGESIZE
    pages = (ctypes.c_ubyte * -(-(end - first) // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mincore(ctypes.c_void_p(first), ctypes.c_size_t(end - first), pages):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return min(end - begin, mmap.PAGESIZE * sum(page & 1 for page in bytes(pages)))


def slot_tensors(runner: Any) -> list[Tensor]:
    """The tensors that hold the keys and values of a causal runner's slots, each with memory of its own."""
    if hasattr(runner, "_memory"):
        return [runner._memory.keys, runner._memory.values]
    layers = [layer for layer in runner._cache.layers if layer.is_initialized]
    return list(chain.from_iterable((layer.keys, layer.values) for layer in layers))
