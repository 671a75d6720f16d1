"""The bytes of a prompt: a safetensors file that explains itself. Encoding, and verification of what is read back.

    8 bytes    length of the header, little endian
    header     JSON: `__metadata__` holds one key, `chorus`, whose value is the PromptMeta as canonical JSON;
               one entry per tensor, F32: `prompt` [P, H], or those that the PromptMeta names; none when P is 0
    data       the tensors' values

Equal content gives equal bytes, hence an equal digest. Nothing here opens a file. The header is checked before the
safetensors library sees the bytes: that library accepts NaN, surplus tensors and huge headers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from prompt_store.errors import InvalidBlob
from prompt_store.models import PromptMeta

METADATA_KEY = "chorus"
MAX_BLOB_BYTES = 64 << 20
MAX_HEADER_BYTES = 256 << 10
# The largest value of half precision: anything beyond it turns into infinity on a replica that serves in fp16.
MAX_MAGNITUDE = 65504.0
_DTYPE = "F32"
# Their keys are labels, whose order a reader may rely on; every other mapping is sorted.
_ORDERED = ("verbalizer", "verbalizer_ids")


def expected_tensors(meta: PromptMeta) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors that a prompt with this metadata must hold, all float32, in the file's order."""
    if meta.tensors is not None:
        return {name: meta.tensors[name] for name in sorted(meta.tensors)}
    if meta.num_virtual_tokens == 0:
        return {}
    return {"prompt": (meta.num_virtual_tokens, meta.backbone.hidden_size)}


def encode_blob(meta: PromptMeta, tensors: Mapping[str, np.ndarray]) -> bytes:
    """Bytes of a prompt; the same for equal content, whatever the order of keys or the layout in memory.

    Raises InvalidBlob when the tensors are not exactly those that `meta` calls for, or not finite, or too large.
    """
    check_tensors(meta, tensors)
    arrays = {name: np.ascontiguousarray(array, dtype="<f4") for name, array in tensors.items()}
    data: bytes = save_safetensors(arrays, metadata={METADATA_KEY: canonical_meta(meta)})
    decode_blob(data)  # the reader's checks, so that nothing is published that no reader would accept
    return data


def canonical_meta(meta: PromptMeta) -> str:
    """`meta` as JSON without spaces, keys sorted except where their order is the labels' order. Raises InvalidBlob."""
    fields = meta.model_dump()  # not its JSON mode, which would turn NaN into null
    try:
        canonical = {name: value if name in _ORDERED else _sorted(value) for name, value in sorted(fields.items())}
        text = json.dumps(canonical, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise InvalidBlob("the metadata holds a value that JSON has no form for", param="meta") from error
    return text


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    return value


def decode_blob(data: bytes, *, max_bytes: int = MAX_BLOB_BYTES) -> tuple[PromptMeta, dict[str, np.ndarray]]:
    """Metadata and tensors of a prompt, both verified: size, header, names, dtype, shape, finite, magnitude.

    The arrays are float32 and own their memory. Raises InvalidBlob.
    """
    if len(data) > max_bytes:
        raise InvalidBlob(f"{len(data)} bytes, the limit is {max_bytes}")
    header, size = _parse_header(data)
    meta = _parse_meta(header.pop("__metadata__", None))
    _check_layout(header, expected_tensors(meta), len(data) - size)
    try:
        tensors: dict[str, np.ndarray] = load_safetensors(data)
    except SafetensorError as error:
        raise InvalidBlob(f"not a safetensors file: {error}") from error
    check_tensors(meta, tensors)
    return meta, {name: array.copy() for name, array in tensors.items()}


def _parse_header(data: bytes) -> tuple[dict[str, Any], int]:
    """The header's entries and the offset where the tensors' data begins."""
    if len(data) < 8:
        raise InvalidBlob("too short to be a safetensors file")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise InvalidBlob(f"a header of {length} bytes, the limit is {MAX_HEADER_BYTES}")
    if 8 + length > len(data):
        raise InvalidBlob("the header is cut short")
    header = _strict_json(data[8 : 8 + length], "header")
    if not isinstance(header, dict):
        raise InvalidBlob("the header is not a JSON object")
    return header, 8 + length


def _parse_meta(metadata: object) -> PromptMeta:
    if not isinstance(metadata, dict) or set(metadata) != {METADATA_KEY} or not isinstance(metadata[METADATA_KEY], str):
        raise InvalidBlob(f"the file's metadata is not exactly one text under {METADATA_KEY!r}")
    fields = _strict_json(metadata[METADATA_KEY].encode(), "metadata")
    try:
        return PromptMeta.model_validate(fields)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise InvalidBlob(f"the prompt's metadata is not valid at {where or 'its top'}", param="meta") from error


def _strict_json(text: bytes, what: str) -> Any:
    """JSON without duplicate keys, NaN or infinities, and not nested beyond reason."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            raise InvalidBlob(f"a key stands twice in the {what}")
        return mapping

    def no_constant(name: str) -> Any:
        raise InvalidBlob(f"{name} in the {what}")

    try:
        return json.loads(text.decode(), object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidBlob(f"the {what} is not JSON in UTF-8") from error


def _check_layout(entries: dict[str, Any], expected: dict[str, tuple[int, ...]], data_size: int) -> None:
    """The header lists exactly the expected tensors, one after the other, and the data ends where they end."""
    if set(entries) != set(expected):
        raise InvalidBlob(f"tensors {sorted(map(ascii, entries))[:8]}, expected {sorted(expected)}", param="tensors")
    offset = 0
    for name, shape in expected.items():
        end = offset + 4 * int(np.prod(shape))
        wanted = {"dtype": _DTYPE, "shape": list(shape), "data_offsets": [offset, end]}
        if entries[name] != wanted:
            raise InvalidBlob(f"tensor {name!r} is not {_DTYPE} of shape {list(shape)}", param="tensors")
        offset = end
    if offset != data_size:
        raise InvalidBlob(f"{data_size} bytes of tensors, expected {offset}", param="tensors")


def check_tensors(meta: PromptMeta, tensors: Mapping[str, np.ndarray]) -> None:
    """Raise InvalidBlob unless the arrays are those that `meta` calls for: float32 [P, H], finite, of sane size."""
    expected = expected_tensors(meta)
    if set(tensors) != set(expected):
        raise InvalidBlob(f"tensors {sorted(tensors)[:8]}, expected {sorted(expected)}", param="tensors")
    for name, shape in expected.items():
        array = tensors[name]
        if array.dtype != np.float32 or array.shape != shape:
            raise InvalidBlob(
                f"tensor {name!r} is {array.dtype} {list(array.shape)}, expected float32 {list(shape)}", param="tensors"
            )
        if not np.isfinite(array).all():
            raise InvalidBlob(f"tensor {name!r} holds NaN or infinity", param="tensors")
        if np.abs(array).max() > MAX_MAGNITUDE:
            raise InvalidBlob(f"tensor {name!r} holds values beyond {MAX_MAGNITUDE:g}", param="tensors")
