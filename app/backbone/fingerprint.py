"""The backbone's fingerprint: what changes token ids or logits, and nothing else.

It covers the model's configuration (without names, versions and dtypes), the tokenizer's definition (without chat
template) and a sha256 for each stored tensor. It does not depend on how the weights are sharded into files. Reading
gigabytes takes time, so the tensors' part is cached by path, size and time of each file.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.errors import UnsupportedBackbone

# Keys that name, date or tune a configuration without changing ids or logits.
_NEUTRAL = {
    *("_name_or_path", "architectures", "auto_map", "transformers_version", "dtype", "torch_dtype", "problem_type"),
    *("id2label", "label2id", "is_decoder", "return_dict", "output_attentions", "output_hidden_states", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "attention_dropout", "pretraining_tp"),
    "chunk_size_feed_forward",
}
_MAX_HEADER_BYTES = 100 << 20
_CHUNK = 1 << 22


def fingerprint(
    config: dict[str, Any],
    tokenizer_json: str,
    files: list[Path],
    *,
    reading: Mapping[str, Any] | None = None,
    cache: Path | None = None,
) -> str:
    """A sha256, 64 hexadecimal digits. `files` are all safetensors files of the model; `reading` is what else changes
    logits: how a model of another family than `causal` is read."""
    digest = hashlib.sha256(b"chorus backbone 1\n")
    neutral_free = {key: value for key, value in config.items() if key not in _NEUTRAL}
    for part in (
        json.dumps(neutral_free, sort_keys=True),
        tokenizer_json,
        json.dumps(tensor_hashes(files, cache=cache)),
    ):
        digest.update(hashlib.sha256(part.encode()).digest())
    if reading:
        digest.update(hashlib.sha256(json.dumps(dict(reading), sort_keys=True).encode()).digest())
    return digest.hexdigest()


def tensor_hashes(files: list[Path], *, cache: Path | None = None) -> list[list[str]]:
    """Sorted `[name, dtype, shape, sha256]` of every tensor in the files."""
    key = json.dumps([[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in sorted(files)])
    entry = cache / f"tensors-{hashlib.sha256(key.encode()).hexdigest()}.json" if cache else None
    if entry and entry.is_file():
        known: list[list[str]] = json.loads(entry.read_text())
        return known
    hashes = sorted(row for file in files for row in _hash_file(file))
    if entry:
        entry.parent.mkdir(parents=True, exist_ok=True)
        part = entry.with_suffix(".part")
        part.write_text(json.dumps(hashes))
        part.replace(entry)
    return hashes


def _hash_file(file: Path) -> Iterator[list[str]]:
    """Read the safetensors layout (8-byte little-endian header length, JSON header, data) without loading tensors."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > _MAX_HEADER_BYTES:
            raise UnsupportedBackbone(f"{file.name}: the safetensors header is too large")
        header = json.loads(stream.read(length))
        for name, info in sorted(header.items(), key=lambda item: item[1].get("data_offsets", [0])[0]):
            if name == "__metadata__":
                continue
            start, stop = info["data_offsets"]
            stream.seek(8 + length + start)
            digest = hashlib.sha256()
            left = stop - start
            while left:
                chunk = stream.read(min(_CHUNK, left))
                if not chunk:
                    raise UnsupportedBackbone(f"{file.name} is cut short")
                digest.update(chunk)
                left -= len(chunk)
            yield [name, info["dtype"], json.dumps(info["shape"]), digest.hexdigest()]
