"""`adapter_model.safetensors`: bytes to float32 tensors and back. The header is checked before the library reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from app.errors import InvalidPrompt, TooLarge
from prompt_store.blob_format import MAX_BLOB_BYTES, MAX_HEADER_BYTES

PARAM = "adapter_model"
DTYPES = ("F32", "F16", "BF16")
"""What becomes float32 without loss."""


def read_tensors(data: bytes, names: frozenset[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, float32 on the CPU, each in memory of its own.

    Raises:
        TooLarge: more bytes than a prompt may have.
        InvalidPrompt: not safetensors, other tensors than `names`, another dtype, or values that are not finite.
    """
    if len(data) > MAX_BLOB_BYTES:
        raise TooLarge(f"{len(data)} bytes of tensors, the limit is {MAX_BLOB_BYTES}", param=PARAM)
    _check_header(data, names)
    try:
        loaded = load_safetensors(data)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise InvalidPrompt(f"not a safetensors file: {error}", param=PARAM) from None
    tensors = {name: tensor.to(torch.float32, copy=True) for name, tensor in loaded.items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InvalidPrompt(f"`{name}` holds NaN or infinity", param=PARAM)
    return tensors


def write_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file as PEFT writes it: float32, `format: pt`."""
    plain = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    return bytes(save_safetensors(plain, metadata={"format": "pt"}))


def _check_header(data: bytes, names: frozenset[str]) -> None:
    length = int.from_bytes(data[:8], "little")
    if data[:2] == b"PK" or data[:1] == b"\x80":
        raise InvalidPrompt(
            "this is a pickle of torch.save, which is not opened: turn it into safetensors with `chorus convert`",
            param=PARAM,
        )
    if len(data) < 8 or length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise InvalidPrompt("not a safetensors file: its header does not fit", param=PARAM)
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        raise InvalidPrompt("not a safetensors file: its header is not JSON", param=PARAM) from None
    if not isinstance(header, dict):
        raise InvalidPrompt("not a safetensors file: its header is not an object", param=PARAM)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if set(entries) != names:
        raise InvalidPrompt(_names_differ(set(entries), names), param=PARAM)
    for name, entry in entries.items():
        _check_dtype(name, entry)


def _check_dtype(name: str, entry: Any) -> None:
    dtype = entry.get("dtype") if isinstance(entry, dict) else None
    if dtype not in DTYPES:
        raise InvalidPrompt(f"`{name}` is {ascii(dtype)[:20]}; it can be {', '.join(DTYPES)}", param=PARAM)


def _names_differ(found: set[str], wanted: frozenset[str]) -> str:
    missing = sorted(wanted - found)
    if missing:
        return f"the tensor `{missing[0]}` is missing"
    shown = ", ".join(ascii(name[:60]) for name in sorted(found - wanted)[:3])
    return (
        f"besides {', '.join(sorted(wanted))} the file holds {shown}: modules that were trained with the prompt, "
        "without which it answers differently"
    )
