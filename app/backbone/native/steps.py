"""The compiled steps behind the interface of `DecoderSteps`: addresses in, nothing copied.

Everything a call gets is contiguous memory of the CPU that its caller keeps alive.
"""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from app.backbone.decoder_steps import Norms, PackedRows
from app.backbone.linear import room_for
from app.backbone.native.build import load
from app.backbone.slot_memory import SlotMemory

# As `row_info` in attention.c.
ROW_INFO = np.dtype(
    [
        *(("first", np.int64), ("count", np.int64), ("slot", np.int64), ("base", np.int64)),
        *(("base_stride", np.int64), ("base_keys", np.uint64), ("base_values", np.uint64), ("layer_bytes", np.int64)),
    ]
)
_LANES = 16
_pointer, _int, _float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class NativeSteps:
    """Float32 or bfloat16 on the CPU, heads as wide as a multiple of 16."""

    name = "native"
    shares_bases = True

    def __init__(self, library: ctypes.CDLL) -> None:
        self._add_rmsnorm, self._silu_mul = library.add_rmsnorm, library.silu_mul
        self._place, self._attend = library.place, library.attend
        self._add_rmsnorm.argtypes = [*[_pointer] * 4, _int, _int, _float]
        self._silu_mul.argtypes = [_pointer, _pointer, _int, _int]
        self._place.argtypes = [*[_pointer] * 6, *[_int] * 6, _pointer, _pointer, _float]
        self._attend.argtypes = [*[_pointer] * 3, _int, *[_pointer] * 3, *[_int] * 5, _float]
        for function in (self._add_rmsnorm, self._silu_mul, self._place, self._attend):
            function.restype = None

    def add_rmsnorm(self, x: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
        n, width = x.shape
        y = room_for(n, width, x)
        self._add_rmsnorm(
            x.data_ptr(),
            None if delta is None else delta.data_ptr(),
            weight.data_ptr(),
            y.data_ptr(),
            n,
            width,
            epsilon,
        )
        return y

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        n, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = room_for(n, width, gate_up)
        self._silu_mul(gate_up.data_ptr(), out.data_ptr(), n, width)
        return out

    def place(self, qkv: Tensor, rows: PackedRows, norms: Norms, memory: SlotMemory, layer: int) -> None:
        heads, (keys, values) = memory.heads, memory.layer_addresses(layer)
        queries = qkv.shape[1] // heads.width - 2 * heads.groups
        self._place(
            *(qkv.data_ptr(), heads.cos.data_ptr(), heads.sin.data_ptr(), rows.places.data_ptr(), keys, values),
            *(qkv.shape[0], queries, heads.groups, heads.width, memory.places, 2 * heads.cos.shape[1]),
            *(None if norm is None else norm.data_ptr() for norm in norms),
            heads.epsilon,
        )

    def attend(self, qkv: Tensor, rows: PackedRows, memory: SlotMemory, layer: int) -> Tensor:
        heads, (keys, values) = memory.heads, memory.layer_addresses(layer)
        out = room_for(qkv.shape[0], heads.queries * heads.width, qkv)
        info: np.ndarray = rows.info
        self._attend(
            *(qkv.data_ptr(), out.data_ptr(), info.ctypes.data, len(info), rows.seen.data_ptr(), keys, values),
            *(layer, heads.queries, heads.groups, heads.width, memory.places, heads.scale),
        )
        return out


def native_steps(dtype: torch.dtype, device: torch.device, head_width: int) -> NativeSteps | None:
    """The compiled steps, or None where they cannot serve this model or this machine."""
    if device.type != "cpu" or head_width % _LANES:
        return None
    library = load(dtype)
    return None if library is None else NativeSteps(library)
